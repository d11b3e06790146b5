"""A sharded model's modules gathered for reading, in order, and its engine let go.

Knows nothing of optimizers, and nothing of what is read.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import nn
from torch.nn import Module

from loki_ds.distributed.zero.sharding import partitioned


class Gatherer:
    """Gathers modules for reading, in order, and counts how often it did."""

    def __init__(self) -> None:
        self.count = 0

    def walk(self, modules: Iterable[Module]) -> Generator[Module, None, None]:
        """Yield each module whole; the next one's gather is in flight while the caller computes.

        A module is released when the caller asks for the next one. A caller that may leave early
        closes the iterator (`contextlib.closing`): then nothing stays whole and nothing in flight.
        All ranks must walk the same modules.
        """
        waiting = list(modules)
        gather = self._start(waiting[0]) if waiting else None
        for i, module in enumerate(waiting):
            _finish(gather)
            gather, following = None, waiting[i + 1] if i + 1 < len(waiting) else None
            try:
                if following is not None and not _tied(module, following):
                    gather = self._start(following)
                yield module
            except GeneratorExit:
                with suppress(torch.OutOfMemoryError):  # what came is dropped in any case
                    _finish(gather)
                if following is not None:
                    _release(following)
                raise
            finally:
                _release(module)
            if following is not None and gather is None:
                gather = self._start(following)

    @contextmanager
    def whole(self, *modules: Module) -> Iterator[None]:
        """Hold the parameters of all these modules whole while open."""
        together = nn.ModuleList(modules)
        _finish(self._start(together))
        try:
            yield
        finally:
            _release(together)

    def _start(self, module: Module) -> "_Gather | None":
        """Begin to gather a module; counted once this rank takes part, whatever becomes of it."""
        parameters = [p for p in partitioned(module) if p.ds_status == ZeroParamStatus.NOT_AVAILABLE]
        if not parameters:
            return None
        with _given_up_on_error(parameters):
            handle = parameters[0].all_gather_coalesced(parameters)
        self.count += 1
        return _Gather(handle, parameters)


class _Gather(NamedTuple):
    """A gather in flight: DeepSpeed's handle, and what will be whole."""

    handle: Any
    parameters: list[Any]


def _finish(gather: _Gather | None) -> None:
    if gather is not None:
        with _given_up_on_error(gather.parameters):
            gather.handle.wait()


@contextmanager
def _given_up_on_error(parameters: list[Any]) -> Iterator[None]:
    """Where a gather fails half-way, as for want of memory, have it never begun: DeepSpeed leaves
    its parameters in flight, and would gather them no more.
    """
    try:
        yield
    except RuntimeError:
        for parameter in parameters:
            if parameter.ds_status == ZeroParamStatus.INFLIGHT:
                parameter.ds_status = ZeroParamStatus.NOT_AVAILABLE
        _partition(parameters)
        raise


def _release(module: Module) -> None:
    _partition(partitioned(module))


def _partition(parameters: list[Any]) -> None:
    """Have of whole parameters this rank's part alone."""
    whole = [p for p in parameters if p.ds_status == ZeroParamStatus.AVAILABLE]
    if whole:
        whole[0].partition(param_list=whole)


def _tied(one: Module, other: Module) -> bool:
    """Whether two modules share a parameter (tied weights), so they cannot be in flight at once."""
    return not {id(p) for p in one.parameters()}.isdisjoint(id(p) for p in other.parameters())


def release_engine(accelerator: Accelerator) -> None:
    """Have a trainer's DeepSpeed engine give back the devices' memory, once its caller lets go of
    trainer and model: it keeps weights, master copy, optimizer and buckets until it is told.
    """
    accelerator.free_memory()
    parameter_offload.FWD_MODULE_STACK.clear()  # DeepSpeed's hooks leave the model there
