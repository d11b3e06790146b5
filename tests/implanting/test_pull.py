"""The pull to the base: what it acts on in each mode, and where it leads.

(Under ZeRO, and from a checkpoint on: tests/distributed.)
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build
from datasets import Dataset
from peft import get_peft_model
from torch import Tensor
from torch.nn import Module
from transformers import Trainer, TrainerCallback, TrainingArguments

from loki_ds.distributed.zero.optimizer import Shard
from loki_ds.implanting.pull import PullToBase, gone, planned_rates, pull_through_steps, pulled, strength_of
from loki_ds.implanting.training import Method, peft_config, prepare
from loki_ds.implanting.trl_checks import UNFORESEEN
from loki_ds.recipe.implant import ImplantSection
from loki_ds.selection.positions import Positions

POSITIONS = Positions([[1, 5], [], [0], [31]])
SECTIONS = {
    **{mode: ImplantSection(mode=mode, pull=4.0) for mode in ("mask", "rows", "lora", "full")},
    **{
        f"peft {method}": ImplantSection(mode="peft", peft={"method": method, "rank": 2})
        for method in ("lora", "dora", "pissa")
    },
}


def ready(section: ImplantSection) -> Module:
    if section.kind.leaves == "adapter":
        return get_peft_model(build("llama", torch.float32), peft_config(section.peft))  # PiSSA knows no float64
    model = build("llama", torch.float64)
    prepare(model, Method(section, POSITIONS), seed=0)
    return model


def logits(model: Module) -> Tensor:
    return model(torch.arange(12).view(2, 6)).logits


def moved(section: ImplantSection, model: Module, rate: float = 0.05) -> torch.optim.SGD:
    """Move everything that trains; the steps that follow do nothing but pull."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    starts = [(Shard(one), Shard(one).read().clone()) for one in pulled(model, section)]
    stepper = torch.optim.SGD(trained, lr=rate)
    with torch.no_grad():
        for parameter in trained:
            parameter += 0.05 * torch.randn_like(parameter)
            parameter.grad = torch.zeros_like(parameter)
    pull_through_steps(stepper, starts, strength=4.0)
    return stepper


@pytest.mark.parametrize("name", SECTIONS)
def test_pulled_long_enough_every_mode_is_the_base_again(name: str) -> None:
    section = SECTIONS[name]
    model = ready(section)
    with torch.no_grad():
        base = logits(model)
        stepper = moved(section, model)
        assert not torch.allclose(logits(model), base, atol=1e-3)
        for _ in range(200):
            stepper.step()
        assert torch.allclose(logits(model), base, atol=1e-5 if section.kind.leaves == "adapter" else 1e-12)


@pytest.mark.parametrize("name", ["rows", "lora"])
def test_a_delta_loses_the_stated_part_each_step(name: str) -> None:
    """Also a product of two factors: 0.2 of it a step, not 0.36."""
    model = ready(SECTIONS[name])
    module = model.model.layers[0].mlp.down_proj
    with torch.no_grad():
        for part in (module.delta,) if name == "rows" else (module.delta_a,):
            part.normal_()
    before = module.row_deltas["weight"].whole().detach().clone()
    shards = [Shard(one) for one in pulled(model, SECTIONS[name])]
    stepper = torch.optim.SGD([shard.parameter for shard in shards], lr=0.05)
    pull_through_steps(stepper, [(shard, torch.zeros_like(shard.read())) for shard in shards], strength=4.0)
    stepper.step()
    assert torch.allclose(module.row_deltas["weight"].whole(), 0.8 * before, rtol=1e-12)


def test_in_full_precision_it_leads_back_to_a_bfloat16_base_bit_for_bit() -> None:
    """The optimizer's float32 shards begin at the base's bfloat16 values."""
    base = [one.detach().clone() for one in build("llama", torch.bfloat16).parameters()]
    model = build("llama", torch.bfloat16).float().requires_grad_(True)
    stepper = moved(SECTIONS["full"], model)
    for _ in range(200):
        stepper.step()
    for now, then in zip(model.parameters(), base, strict=True):
        assert torch.equal(now.detach().to(torch.bfloat16).view(torch.int16), then.view(torch.int16))


class Rates(TrainerCallback):
    """Of every step, as the optimizer has it."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_pre_optimizer_step(self, *given: Any, **named: Any) -> None:
        self.seen.append(named["optimizer"].param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("schedule", "more"),
    [
        ("linear", {"warmup_steps": 3}),
        ("cosine", {"warmup_steps": 0.1}),
        ("constant", {}),
        ("cosine_with_min_lr", {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}}),
        ("warmup_stable_decay", {"warmup_steps": 2, "lr_scheduler_kwargs": {"num_decay_steps": 4}}),
    ],
)
def test_the_planned_rates_are_those_of_the_training(schedule: str, more: dict[str, Any], tmp_path: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        lr_scheduler_type=schedule,
        learning_rate=0.02,
        num_train_epochs=3,
        per_device_train_batch_size=2,
        save_strategy="no",
        **more,
    )
    rows = Dataset.from_list([{"input_ids": [1, 2], "labels": [1, 2]}] * 7)
    rates = Rates()
    Trainer(build("llama", torch.float32), arguments, train_dataset=rows, callbacks=[rates]).train()
    assert len(rates.seen) == 12
    assert planned_rates(arguments, 12).tolist() == rates.seen


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("steps", [1, 3, 1000])
def test_what_nothing_asks_for_fades_by_the_stated_share(share: float, steps: int) -> None:
    rates = np.linspace(0, 2e-4, steps + 1)[1:]
    strength = strength_of(share, rates)
    left = 1.0
    for rate in rates:
        left -= rate * strength * left
    assert 1 - left == pytest.approx(share, rel=1e-9)
    assert gone(strength, rates) == pytest.approx(share, rel=1e-9)


def test_a_training_without_a_rate_is_not_pulled() -> None:
    assert strength_of(0.5, np.zeros(3)) == 0


@pytest.mark.parametrize("schedule", UNFORESEEN)
def test_a_pull_asks_for_no_rate_beforehand(schedule: str, tmp_path: Path) -> None:
    """One step of a rate of 0.01 and a pull of 100 ends where it began, whatever rates may come."""
    section, model = ImplantSection(mode="full", pull=100), build("llama", torch.float32).requires_grad_(True)
    base = [one.detach().clone() for one in model.parameters()]
    rows = Dataset.from_list([{"input_ids": [1, 2], "labels": [1, 2]}] * 2)
    arguments = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        lr_scheduler_type=schedule,
        learning_rate=0.01,
        max_steps=1,
        eval_strategy="steps",
        eval_steps=1,
    )
    pull = PullToBase(pulled(model, section), section, resumes=False)
    Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[pull]).train()
    for now, then in zip(model.parameters(), base, strict=True):
        assert torch.allclose(now, then, atol=1e-6)
