"""A model that is sharded, and its modules gathered for reading, in order.

Knows ZeRO-3's partitioned parameters. Knows nothing of optimizers, and nothing of what is read.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import nn
from torch.nn import Module
from transformers.integrations import deepspeed as hf_deepspeed

from loki_ds.distributed.device import current_device


def is_sharded(model: Module) -> bool:
    return bool(_partitioned(model))


def full_shape(parameter: Any) -> torch.Size:
    """The parameter's shape when gathered."""
    return parameter.ds_shape if is_partitioned(parameter) else parameter.shape


def device_of(model: Module) -> torch.device:
    """Where the model computes on this rank (a partitioned parameter's own device can be the
    host's).
    """
    return current_device() if is_sharded(model) else next(model.parameters()).device


def model_dtype(model: Module) -> torch.dtype:
    """The dtype of the model's parameters (of the first, embedding)."""
    return next(model.parameters()).dtype


class Gatherer:
    """Gathers modules for reading, in order, and counts how often it did."""

    def __init__(self) -> None:
        self.count = 0

    def walk(self, modules: Iterable[Module]) -> Generator[Module, None, None]:
        """Yield each module with whole parameters; the next one's gather is in flight while the
        caller computes.

        A module is released when the caller asks for the next one. A caller that may leave early
        closes the iterator (`contextlib.closing`): then nothing stays whole and nothing in flight.
        All ranks must walk the same modules.
        """
        waiting = list(modules)
        handle = self._start(waiting[0]) if waiting else None
        for i, module in enumerate(waiting):
            _finish(handle)
            following = waiting[i + 1] if i + 1 < len(waiting) else None
            handle = self._start(following) if following is not None and not _tied(module, following) else None
            try:
                yield module
            except GeneratorExit:
                if handle is not None and following is not None:
                    _finish(handle)
                    _release(following)
                raise
            finally:
                _release(module)
            if following is not None and handle is None:
                handle = self._start(following)

    @contextmanager
    def whole(self, *modules: Module) -> Iterator[None]:
        """Hold the parameters of all these modules whole while open."""
        together = nn.ModuleList(modules)
        _finish(self._start(together))
        try:
            yield
        finally:
            _release(together)

    def _start(self, module: Module) -> Any:
        parameters = [p for p in _partitioned(module) if p.ds_status == ZeroParamStatus.NOT_AVAILABLE]
        if not parameters:
            return None
        self.count += 1
        return parameters[0].all_gather_coalesced(parameters)


def _finish(handle: Any) -> None:
    if handle is not None:
        handle.wait()


def _release(module: Module) -> None:
    parameters = [p for p in _partitioned(module) if p.ds_status == ZeroParamStatus.AVAILABLE]
    if parameters:
        parameters[0].partition(param_list=parameters)


def _tied(one: Module, other: Module) -> bool:
    """Whether two modules have a parameter in common (tied weights): then they cannot be in flight
    at once.
    """
    return not {id(p) for p in one.parameters()}.isdisjoint(id(p) for p in other.parameters())


def _partitioned(module: Module) -> list[Any]:
    return [parameter for parameter in module.parameters() if is_partitioned(parameter)]


def is_partitioned(parameter: Any) -> bool:
    """Whether ZeRO-3 holds the parameter in parts."""
    return hasattr(parameter, "ds_id")


def release_engine(accelerator: Accelerator) -> None:
    """Have a trainer's DeepSpeed engine give back the devices' memory, once its caller lets go of
    trainer and model: it keeps weights, master copy, optimizer and buckets until it is told.
    """
    accelerator.free_memory()
    parameter_offload.FWD_MODULE_STACK.clear()  # DeepSpeed's hooks leave the model there


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
