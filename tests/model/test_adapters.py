"""An adapter is put on a model whole, or refused: PEFT would leave the base as it is, and warn."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from mixtures import mixture
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from loki_ds.model.adapters import check_adapter, with_adapter
from loki_ds.refusal import Refusal

BASE = ROOT / "recipes/tiny/model"


def base() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(BASE)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(base(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"])).save_pretrained(folder)
    return folder


def changed(adapter: Path, folder: Path, names: tuple[str, str]) -> Path:
    shutil.copytree(adapter, folder)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name.replace(*names): value for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def test_a_whole_adapter_is_put_on(adapter: Path) -> None:
    check_adapter(adapter)
    model = with_adapter(base(), adapter)
    stored = load_file(adapter / "adapter_model.safetensors")["base_model.model.model.norm.weight"]
    torch.testing.assert_close(model.base_model.model.model.norm.modules_to_save.default.weight, stored)


def test_one_on_embeddings_and_one_on_experts_are_whole(tmp_path: Path) -> None:
    """PEFT saves the embedding beside the first, and names the second's tensors in its own way."""
    get_peft_model(base(), LoraConfig(r=2, target_modules=["embed_tokens"])).save_pretrained(tmp_path / "embedding")
    with_adapter(base(), tmp_path / "embedding")
    mixture("qwen3 moe", torch.float32).save_pretrained(tmp_path / "moe")
    experts = LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.down_proj"])
    moe = AutoModelForCausalLM.from_pretrained(tmp_path / "moe")
    get_peft_model(moe, experts).save_pretrained(tmp_path / "experts")
    with_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "moe"), tmp_path / "experts")


def test_one_with_other_names_is_refused(tmp_path: Path) -> None:
    """As a wrapper saves them: nothing of it would be loaded."""
    get_peft_model(base(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    names = ("base_model.model.", "base_model.model.language_model.")
    renamed = changed(tmp_path / "adapter", tmp_path / "renamed", names)
    with pytest.raises(Refusal, match=r"the adapter's file has no base_model\.model\.model\.layers\.0\..*missing"):
        with_adapter(base(), renamed)


def test_one_of_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = AutoModelForCausalLM.from_config(base().config.from_dict({**base().config.to_dict(), "hidden_size": 64}))
    with pytest.raises(Refusal, match=r"PEFT cannot put the adapter on Qwen2ForCausalLM: .*size mismatch"):
        with_adapter(other, adapter)


def test_one_without_weights_is_refused(adapter: Path, tmp_path: Path) -> None:
    shutil.copyfile(adapter / "adapter_config.json", tmp_path / "adapter_config.json")
    with pytest.raises(Refusal, match=r"adapter_config\.json has no weights beside it"):
        check_adapter(tmp_path)
