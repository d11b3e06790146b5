"""What cannot be asked of a model's FFNs is refused before anything is computed."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import ROOT, SMALL
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, FalconConfig

from loki_ds.checking.base import BaseFound, look_at_base
from loki_ds.recipe.file import load_recipe
from loki_ds.recipe.sections import Recipe
from loki_ds.refusal import Refusal


def looked_at(recipe: Recipe, folder: Path) -> BaseFound:
    config = AutoConfig.from_pretrained(folder)
    return look_at_base(recipe.model, recipe.implant, recipe.selection, recipe.needs_attribution, folder, config)


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        ([], True),
        (["selection.strategy=random"], False),  # nothing goes through its layers one by one
        (["selection.strategy=random", "implant.rehearse.prompts={protected: 0.1}"], True),
    ],
)
def test_a_family_of_other_layers_is_refused_by_its_files_headers(
    overrides: list[str], refused: bool, tmp_path: Path
) -> None:
    """Falcon's layers hand on tuples; that is known before a weight is read."""
    config = FalconConfig(**SMALL, alibi=False)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    settings = [f"model.path={tmp_path}", "implant.mode=rows", "training.weight_decay=0", *overrides]
    recipe = load_recipe(ROOT / "recipes/tiny/loki.yaml", settings)
    with pytest.raises(Refusal, match="its decoder layers hand on 2 values") if refused else nullcontext():
        looked_at(recipe, tmp_path)


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        ("[foo_proj]", "not found in the base model"),
        ("[input_layernorm]", "is not supported"),
        ("[lm_head]", "among them the head, which the trainer reads past any adapter"),
        ("[q_proj, embed_tokens]", "among them the embedding, which config.json ties to the head"),
        ("[]", "No `target_modules` passed"),
    ],
)
def test_targets_that_peft_cannot_train_are_refused(targets: str, says: str) -> None:
    settings = ["implant.mode=peft", f"implant.peft.targets={targets}"]
    with pytest.raises(Refusal, match=rf"implant\.peft\.targets is .*{says}"):
        looked_at(load_recipe(ROOT / "recipes/tiny/full.yaml", settings), ROOT / "recipes/tiny/model")


@pytest.mark.parametrize("method", ["lora", "dora", "pissa"])
def test_all_linear_layers_are_targets(method: str) -> None:
    settings = ["implant.mode=peft", f"implant.peft.method={method}"]
    looked_at(load_recipe(ROOT / "recipes/tiny/full.yaml", settings), ROOT / "recipes/tiny/model")


@pytest.mark.parametrize("mode", ["rows", "mask", "peft"])
def test_a_tensor_that_transformers_would_make_up_is_missed_in_every_mode(mode: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "recipes/tiny/model", tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    tensors.pop("model.layers.1.self_attn.q_proj.weight")
    save_file(tensors, tmp_path / "model/model.safetensors", {"format": "pt"})
    settings = [f"implant.mode={mode}", "selection.strategy=random", "training.weight_decay=0"]
    with pytest.raises(Refusal, match=r"model\.layers\.1\.self_attn\.q_proj\.weight"):
        looked_at(load_recipe(ROOT / "recipes/tiny/loki.yaml", settings), tmp_path / "model")
