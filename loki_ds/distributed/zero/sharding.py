"""Whether ZeRO-3 holds a model in parts, and its parameters' true shapes.

Knows its marks on parameters, and needs no DeepSpeed: most models are whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Module
from transformers.integrations import deepspeed as hf_deepspeed

from loki_ds.distributed.device import current_device


def is_sharded(model: Module) -> bool:
    return bool(partitioned(model))


def full_shape(parameter: Any) -> torch.Size:
    """The parameter's shape when gathered."""
    return parameter.ds_shape if is_partitioned(parameter) else parameter.shape


def device_of(model: Module) -> torch.device:
    """Where the model computes on this rank (a partitioned parameter's device can be the host)."""
    return current_device() if is_sharded(model) else next(model.parameters()).device


def model_dtype(model: Module) -> torch.dtype:
    """The dtype of the model's parameters (of the first, embedding)."""
    return next(model.parameters()).dtype


def partitioned(module: Module) -> list[Any]:
    """The parameters of a module that ZeRO-3 holds in parts."""
    return [parameter for parameter in module.parameters() if is_partitioned(parameter)]


def is_partitioned(parameter: Any) -> bool:
    """Whether ZeRO-3 holds the parameter in parts."""
    return hasattr(parameter, "ds_id")


@contextmanager
def unsharded() -> Iterator[None]:
    """While open, transformers builds models whole, although a ZeRO-3 configuration is live."""
    live = hf_deepspeed._hf_deepspeed_config_weak_ref
    configuration = live() if live is not None else None
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if configuration is not None:
            hf_deepspeed.set_hf_deepspeed_config(configuration)
