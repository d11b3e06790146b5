"""The recipe's `training:` held against what TRL declares: types, ranges, and what is out of place.

TRL and transformers would take most of it and fail when the training begins, or when it ends.
"""

from dataclasses import fields
from enum import Enum
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from transformers import Trainer
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.training_args import OptimizerNames
from transformers.utils import is_liger_kernel_available
from trl import SFTConfig

from loki_ds.recipe.implant import ImplantSection
from loki_ds.recipe.sections import DataSection
from loki_ds.recipe.training_keys import ABOVE_ZERO, RESERVED
from loki_ds.refusal import Refusal, did_you_mean, short

UNFORESEEN = ("reduce_lr_on_plateau", "greedy")
# What TRL's fields declare as choices, and never hold a value against.
CHOICES = {each.name: each.metadata["choices"] for each in fields(SFTConfig) if each.metadata.get("choices")}
METRICS = ("loss", "mean_token_accuracy", "entropy")  # that SFTTrainer's evaluation gives, by the name with eval_, too


def check_settings(training: dict[str, Any], implant: ImplantSection, data: DataSection) -> None:
    """Refuse the first setting that the training could not use."""
    declared = declared_types()
    for key, value in training.items():
        if key in declared and not _fits(value, declared[key]):
            raise Refusal(f"training.{key} is {value!r}, allowed is {_named(declared[key])}")
        if key in ABOVE_ZERO and value is not None and not value > 0:
            raise Refusal(f"training.{key} is {value!r}, allowed is more than 0")
        if (choices := CHOICES.get(key)) and value not in choices:
            raise Refusal(f"training.{key} is {value!r}, allowed is {' or '.join(choices)}")
    if (steps := training.get("max_steps", -1)) < 1 and steps != -1:
        raise Refusal(f"training.max_steps is {steps}, allowed is more than 0, or -1 for training.num_train_epochs")
    if training.get("eval_strategy", "no") != "no" and data.heldout is None:
        raise Refusal(f"training.eval_strategy is {training['eval_strategy']}, and there is no data.heldout")
    if implant.fade and training.get("lr_scheduler_type") in UNFORESEEN:
        raise Refusal(
            f"training.lr_scheduler_type is {training['lr_scheduler_type']}, whose rates nobody knows beforehand, as "
            "implant.fade has to; give implant.pull"
        )
    decay = training.get("weight_decay", 0)
    if implant.kind.leaves == "deltas" and decay:
        raise Refusal(
            f"training.weight_decay is {decay}, allowed in implant.mode {implant.mode} is 0 (training.weight_decay=0): "
            "a delta would decay to the base, which is implant.pull"
        )
    metric = training.get("metric_for_best_model")
    if metric is not None and str(metric).removeprefix("eval_") not in METRICS:
        raise Refusal(f"training.metric_for_best_model is {metric!r}, allowed is {' or '.join(METRICS)}")
    if implant.early_stopping is not None and not training.get("load_best_model_at_end"):
        raise Refusal("implant.early_stopping needs training.load_best_model_at_end, by which it knows a better one")
    if training.get("load_best_model_at_end") and training.get("eval_strategy", "no") == "no":
        raise Refusal("training.load_best_model_at_end needs training.eval_strategy, or no checkpoint is the best")


def check_optimizer(arguments: SFTConfig) -> None:
    """Refuse an optimizer whose package is not installed, or whose settings it does not take, by
    having transformers look for it as it will.
    """
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments, torch.nn.Linear(1, 1))  # type: ignore[arg-type]  # of no matter
    except (ImportError, ValueError) as error:
        raise Refusal(f"training.optim is {OptimizerNames(arguments.optim).value}: {short(error, 300)}") from None


def declared_types() -> dict[str, Any]:
    """What `training:` may hold: the types of TRL's fields, less those that other sections set."""
    types = get_type_hints(SFTConfig)
    return {each.name: types[each.name] for each in fields(SFTConfig) if each.init and each.name not in RESERVED}


def check_installed(training: dict[str, Any]) -> None:
    """Refuse what needs a package that is not here, where the training will run."""
    if training.get("use_liger_kernel") and not is_liger_kernel_available():
        raise Refusal("training.use_liger_kernel is true, and the package liger-kernel is not installed")
    check_trackers(training.get("report_to"))


def _fits(value: Any, declared: Any) -> bool:
    """Whether a value is of the declared type; text is never read as a number."""
    try:
        read = TypeAdapter(declared).validate_python(value)
    except ValidationError:
        return False
    return not isinstance(value, str) or isinstance(read, str | Enum)


def _named(declared: Any) -> str:
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "None": "null"}
    said = declared.__name__ if isinstance(declared, type) else str(declared)
    return " or ".join(names.get(part.strip(), part.strip()) for part in said.split("|"))


def check_trackers(names: list[str] | str | None) -> None:
    """Refuse trackers whose package is not there: transformers says so when training begins."""
    there = get_available_reporting_integrations()
    for name in [names] if isinstance(names, str) else names or []:
        if name in ("none", "all") or name in there:
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            near = did_you_mean(name, INTEGRATION_TO_CALLBACK)
            raise Refusal(f"training.report_to names {name}, which transformers does not know{near}")
        raise Refusal(f"training.report_to names {name}, whose package is not installed; install it, or say none")
