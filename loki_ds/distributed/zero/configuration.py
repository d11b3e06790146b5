"""A DeepSpeed file, as DeepSpeed itself reads it."""

from collections.abc import Iterator
from inspect import signature
from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS, DeepSpeedConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError

from loki_ds.refusal import Refusal, did_you_mean, short

OF_ADAM = ("torch_adam", "adam_w_mode")  # which DeepSpeed reads itself


def check_zero(section: dict[str, Any], file: str) -> None:
    """Refuse a value that DeepSpeed will not take; `auto` is the trainer's to fill in."""
    try:
        DeepSpeedZeroConfig(**{key: value for key, value in section.items() if value != "auto"})
    except (ValidationError, TypeError) as error:
        if isinstance(error, TypeError):
            raise Refusal(f"{file}: zero_optimization: {error}") from None
        wrong = error.errors()[0]
        key = ".".join(map(str, ("zero_optimization", *wrong["loc"])))
        raise Refusal(f"{file}: {key} is {wrong['input']!r}: {wrong['msg']}") from None


def check_config(config: dict[str, Any], file: str) -> None:
    """Refuse a file that DeepSpeed will not take; `auto` is filled in."""
    if left := next(_autos(config), None):
        raise Refusal(f"{file}: {left} is 'auto', which nobody fills in; say a value")
    if "optimizer" in config:
        _check_optimizer(config["optimizer"], file)
    for key in ("offload_optimizer", "offload_param"):
        section = config["zero_optimization"].get(key) or {}
        if section.get("device") == "nvme" and not section.get("nvme_path"):
            raise Refusal(f"{file}: zero_optimization.{key}.nvme_path is missing, where its device is nvme")
    try:
        DeepSpeedConfig(config)
    except ValidationError as error:
        wrong = error.errors()[0]
        key = ".".join(map(str, wrong["loc"]))
        raise Refusal(f"{file}: {key} is {wrong['input']!r}: {wrong['msg']} ({error.title})") from None
    except Exception as error:  # noqa: BLE001 (its own classes, and assertions)
        raise Refusal(f"{file}: DeepSpeed does not take it: {short(error, 300)}") from None


def _check_optimizer(section: dict[str, Any], file: str) -> None:
    kind = str(section.get("type"))
    if kind.lower() not in DEEPSPEED_OPTIMIZERS and not hasattr(torch.optim, kind):
        raise Refusal(f"{file}: optimizer.type is {kind!r}, allowed are {', '.join(DEEPSPEED_OPTIMIZERS)}")
    if kind.lower() not in ("adam", "adamw"):
        return
    known = {*signature(torch.optim.AdamW).parameters, *signature(DeepSpeedCPUAdam).parameters, *OF_ADAM}
    if unknown := sorted(section.get("params", {}).keys() - known):
        near = did_you_mean(unknown[0], known)
        raise Refusal(f"{file}: optimizer.params.{unknown[0]} is not a parameter of {kind}{near}")


def _autos(section: dict[str, Any], above: str = "") -> Iterator[str]:
    """Dotted keys that are `auto`."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _autos(value, f"{above}{key}.")
        elif value == "auto":
            yield above + key
