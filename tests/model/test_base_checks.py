"""The rows in a base's files must be its class's own, and a whole model leaves under the files'
names.
"""

import json
from pathlib import Path

import pytest
import torch
from conftest import build
from mixtures import mixture
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from loki_ds.model.base_checks import as_stored, check_usable, check_whole
from loki_ds.model.files import open_weights
from loki_ds.recipe.sections import ModelSection, SelectionSection
from loki_ds.refusal import Refusal


def saved(name: str, folder: Path) -> Path:
    mixture(name, torch.float32).save_pretrained(folder)
    return folder


DOWN = SelectionSection()


def check(folder: Path, rows: SelectionSection | None = DOWN, everything: bool = False) -> None:
    check_usable(folder, AutoConfig.from_pretrained(folder), ModelSection(path=str(folder)), rows, everything)


@pytest.mark.parametrize("name", ["qwen3 moe", "gpt-oss", "gpt-2", "granite"])
def test_a_base_is_taken_as_it_is_published(name: str, tmp_path: Path) -> None:
    check(saved(name, tmp_path), everything=True)


def test_a_head_that_its_class_ties_is_not_missed(tmp_path: Path) -> None:
    """XLM-RoBERTa's lies under another name than all others'."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    config = AutoConfig.for_model("xlm-roberta", num_hidden_layers=1, is_decoder=True, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    check_whole(tmp_path, config, trust_remote_code=False)


def test_a_missing_expert_is_missed(tmp_path: Path) -> None:
    """The last one: what is there is numbered from 0 without a gap."""
    folder = saved("qwen3 moe", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.3.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(Refusal, match=r"layer 1 has 32 rows of 48 numbers in the files, 32 of 64 by its class"):
        check(folder)


def test_a_family_without_known_rows_is_refused_for_rows_alone(tmp_path: Path) -> None:
    """Its full fine-tuning is as good as any other's."""
    folder = saved("qwen3 moe", tmp_path)
    config = AutoConfig.for_model("mamba", vocab_size=64, hidden_size=32, num_hidden_layers=1)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "mamba")
    with pytest.raises(Refusal, match=r"MambaForCausalLM: .*no FFN of its own"):
        check(folder / "mamba")
    check(folder / "mamba", rows=None, everything=True)


@pytest.mark.parametrize("fused", [True, False])
def test_a_whole_model_is_written_under_the_names_of_the_files(fused: bool, tmp_path: Path) -> None:
    mixture("qwen3 moe", torch.float32).save_pretrained(tmp_path, save_original_format=not fused)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with open_weights(tmp_path) as weights:
        found = as_stored(model, model.state_dict(), weights)
        assert {name: tuple(one.shape) for name, one in found.items()} == {
            name: weights.shape_of(name) for name in weights.names
        }
        assert all(one.equal(weights.read(name)) for name, one in found.items())


@pytest.mark.parametrize(("ties", "same"), [(True, False), (True, True), (False, False)])
def test_a_head_beside_the_embedding_that_it_is_tied_to_must_be_the_same(
    ties: bool, same: bool, tmp_path: Path
) -> None:
    """Sharded it would be tied, whole it would not."""
    folder = tmp_path / "model"
    build("llama", torch.float32, tie_word_embeddings=False).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    if same:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": ties}
    (folder / "config.json").write_text(json.dumps(config))
    if same or not ties:
        check(folder)
        return
    with pytest.raises(Refusal, match=r"ties the head to the embedding .* and lm_head.weight is another"):
        check(folder)
