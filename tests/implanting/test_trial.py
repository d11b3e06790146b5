"""What the trainer, its schedule, its batches and DeepSpeed's engine would say hours later is said
at once.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from loki_ds.implanting.trl_config import training_arguments
from loki_ds.recipe.file import load_recipe
from loki_ds.refusal import Refusal

ZERO2 = json.loads((ROOT / "launch/zero2.json").read_text())
ADAMW = {"lr": "auto", "weight_decay": "auto"}


def arguments(folder: Path, *overrides: str) -> Any:
    return training_arguments(load_recipe(ROOT / "recipes/tiny/full.yaml", [*overrides]), folder, None)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["training.lr_scheduler_type=cosine_with_min_lr"], "One of min_lr or min_lr_rate should be set"),
        (["training.lr_scheduler_kwargs={num_cyclez: 2}"], "unexpected keyword argument 'num_cyclez'"),
        (["training.seed=-1"], "Seed must be between 0"),
        (["training.adam_beta1=1.5"], "Invalid beta parameter"),
        (["training.adam_epsilon=-1"], "Invalid epsilon value"),
        (["training.dataloader_persistent_workers=true"], "persistent_workers option needs num_workers > 0"),
        (["training.dataloader_num_workers=-1"], "num_workers option should be non-negative"),
        (["training.save_strategy=best"], "metric_for_best_model` must be provided"),
        (["training.padding_free=true"], "padding_free=True` without packing"),
        (["training.packing=true", "training.max_length=null"], "max_length` can't be `None`"),
    ],
)
def test_what_the_trainer_refuses_is_refused_by_the_check(overrides: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=f"training: the trainer cannot be made: .*{says}"):
        arguments(tmp_path, *overrides)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("learning_rate=-1e-3", "learning_rate is -0.001, allowed is more than 0"),
        ("learning_rate=0", "learning_rate is 0, allowed is more than 0"),
        ("max_steps=0", "max_steps is 0, allowed is more than 0, or -1"),
        ("pad_to_multiple_of=0", "pad_to_multiple_of is 0, allowed is more than 0"),
        ("train_sampling_strategy=foo", "train_sampling_strategy is 'foo', allowed is random or"),
        ("loss_type=foo", "loss_type is 'foo', allowed is nll or"),
        ("packing_strategy=foo", "packing_strategy is 'foo', allowed is bfd or"),
        ("log_level=nonsense", "log_level is 'nonsense', allowed is detail or"),
    ],
)
def test_ranges_and_choices_that_nobody_holds_a_value_against(override: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=rf"training\.{says}"):
        arguments(tmp_path, f"training.{override}")


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup", "polynomial", "inverse_sqrt"])
def test_schedules_that_need_nothing_are_taken(schedule: str, tmp_path: Path) -> None:
    assert arguments(tmp_path, f"training.lr_scheduler_type={schedule}").lr_scheduler_type == schedule


DEEPSPEED: dict[str, tuple[dict[str, Any], str]] = {
    "an auto that nobody fills in": (
        {"zero_optimization": {"stage": 2, "allgather_bucket_size": "auto"}},
        "zero_optimization.allgather_bucket_size is 'auto', which nobody fills in",
    ),
    "nvme without its path": (
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
        "zero_optimization.offload_optimizer.nvme_path is missing",
    ),
    "a misspelt key of bf16": ({"bf16": {"enable": True}}, "enable is True: .*DeepSpeedBF16Config"),
    "an unknown optimizer": ({"optimizer": {"type": "AdamWW", "params": ADAMW}}, "optimizer.type is 'AdamWW'"),
    "an optimizer without a type": ({"optimizer": {"params": ADAMW}}, "optimizer.type is 'None', allowed are adagrad"),
    "a parameter that it has not": (
        {"optimizer": {"type": "AdamW", "params": {**ADAMW, "beta": 1}}},
        "optimizer.params.beta is not a parameter of AdamW; did you mean 'betas'",
    ),
    "a dtype that is none": ({"communication_data_type": "fp99"}, "Invalid communication_data_type"),
    "a section that is gone": ({"progressive_layer_drop": {"enabled": True}}, "has been removed"),
}


@pytest.mark.parametrize("case", DEEPSPEED)
def test_what_deepspeed_refuses_is_refused_by_the_check(case: str, tmp_path: Path) -> None:
    section, says = DEEPSPEED[case]
    (tmp_path / "ds.json").write_text(json.dumps({**ZERO2, **section}))
    with pytest.raises(Refusal, match=says):
        arguments(tmp_path, f"deepspeed={tmp_path / 'ds.json'}")


@pytest.mark.parametrize("kind", ["AdamW", "Adam", "Lion", "SGD"])
def test_optimizers_of_the_file_are_taken(kind: str, tmp_path: Path) -> None:
    section = {"optimizer": {"type": kind, "params": ADAMW}}
    (tmp_path / "ds.json").write_text(json.dumps({**ZERO2, **section}))
    arguments(tmp_path, f"deepspeed={tmp_path / 'ds.json'}")


@pytest.mark.parametrize(
    ("section", "override"),
    [
        ({"optimizer": {"type": "AdamW", "params": ADAMW}}, "optim=adafactor"),
        (
            {
                "scheduler": {
                    "type": "WarmupLR",
                    "params": {"warmup_min_lr": 0, "warmup_max_lr": "auto", "warmup_num_steps": "auto"},
                }
            },
            "lr_scheduler_type=cosine",
        ),
    ],
)
def test_an_optimizer_or_a_schedule_is_named_once(section: dict[str, Any], override: str, tmp_path: Path) -> None:
    """DeepSpeed's would win, in silence."""
    (tmp_path / "ds.json").write_text(json.dumps({**ZERO2, **section}))
    with pytest.raises(Refusal, match=rf"training\.{override.split('=')[0]} is .*, which would do nothing"):
        arguments(tmp_path, f"deepspeed={tmp_path / 'ds.json'}", f"training.{override}")
