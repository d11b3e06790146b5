"""`Fade` on a stock trainer gives the weights that a recipe's `implant.fade` gives, and resumes."""

from pathlib import Path

import pytest
import torch
from conftest import build
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import Module
from transformers import Trainer, TrainerCallback, TrainingArguments

from loki_ds import Fade
from loki_ds.implanting.pull import PullToBase, pulled
from loki_ds.recipe.implant import ImplantSection
from loki_ds.refusal import Refusal

ROWS = Dataset.from_list([{"input_ids": [i, i + 1, i + 2], "labels": [i, i + 1, i + 2]} for i in range(3, 11)])
PEFT = ImplantSection(mode="peft", fade=0.8)
SECTIONS = {"full": ImplantSection(mode="full", fade=0.8), "lora": PEFT, "dora": PEFT, "pissa": PEFT}


def made(name: str, dtype: torch.dtype = torch.float32) -> Module:
    model = build("llama", dtype)
    if name == "full":
        return model.requires_grad_(True)
    torch.manual_seed(0)
    init = "pissa" if name == "pissa" else True
    config = LoraConfig(r=2, target_modules="all-linear", use_dora=name == "dora", init_lora_weights=init)
    return get_peft_model(model, config)


def trained(
    model: Module, folder: Path, pull: TrainerCallback, resume: bool = False, **changes: object
) -> list[Tensor]:
    settings = {"max_steps": 6, "save_strategy": "no", "learning_rate": 0.01, **changes}
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to="none", logging_strategy="no", **settings)
    Trainer(model, arguments, train_dataset=ROWS, eval_dataset=ROWS, callbacks=[pull]).train(
        resume_from_checkpoint=resume
    )
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", SECTIONS)
def test_the_same_weights_as_a_recipes(name: str, tmp_path: Path) -> None:
    section = SECTIONS[name].model_copy(update={"peft": SECTIONS[name].peft.model_copy(update={"method": name})})
    model = made(name)
    recipes = trained(model, tmp_path, PullToBase(pulled(model, section), section, resumes=False))
    stock = trained(made(name), tmp_path, Fade(0.8))
    alone = trained(made(name), tmp_path, TrainerCallback())
    assert all(torch.equal(one, other) for one, other in zip(recipes, stock, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(stock, alone, strict=True))


def test_a_training_that_resumes_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = trained(made("full"), tmp_path / "whole", Fade(0.8), save_strategy="steps", save_steps=3)
    (tmp_path / "half").mkdir()
    (tmp_path / "whole/checkpoint-3").rename(tmp_path / "half/checkpoint-3")
    resumed = trained(made("full"), tmp_path / "half", Fade(0.8), resume=True)
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))


def test_what_nothing_asks_for_goes_back(tmp_path: Path) -> None:
    """Nothing is learned at all, so the share of what was there is gone."""
    model = made("full")
    start = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        fade = Fade(0.8)
        arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", max_steps=6, learning_rate=0.01)
        empty = ROWS.map(lambda row: {"labels": [-100] * 3})
        trainer = Trainer(model, arguments, train_dataset=empty, callbacks=[fade])
        for parameter in model.parameters():
            parameter += 1
    trainer.compute_loss = lambda model, inputs, **_: sum(one.sum() for one in model.parameters()) * 0.0
    arguments.weight_decay = 0.0
    trainer.train()
    for now, then in zip(model.parameters(), start, strict=True):
        assert torch.allclose(now - then, torch.full_like(then, 0.2), atol=1e-4)


def test_what_a_pull_could_not_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="Fade is 1, allowed is above 0 and below 1"):
        Fade(1)
    with pytest.raises(Refusal, match=r"steps weights in torch.bfloat16, in which a pull is rounded away"):
        trained(made("full", torch.bfloat16), tmp_path, Fade(0.8))
    with pytest.raises(Refusal, match="lr_scheduler_type is reduce_lr_on_plateau"):
        trained(made("full"), tmp_path, Fade(0.8), lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps")
