"""Ranks and ZeRO: the one module that knows DeepSpeed's partitioning.

It starts and ends the process group, loads a model that is sharded while it is built, gathers modules for reading with the next
gather already in flight, runs code on rank 0 for all, and reaches an optimizer's shards. The same calls work with ZeRO off and
on a single process. It knows nothing of attribution, rows or recipes' meaning.
"""

import gc
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param
from torch import nn
from torch.nn import Module
from transformers import AutoModelForCausalLM, PreTrainedModel

from loki_ds.refusal import Refusal

Result = TypeVar("Result")


# --- ranks ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def refusals_shown_once() -> Iterator[None]:
    """Show a refusal as one sentence, and end every rank with exit status 2.

    Rank 0 speaks; another rank speaks only when rank 0 has had the time to and did not, that is, when the refusal is its alone.
    """
    try:
        yield
    except Refusal as refusal:
        if int(os.environ.get("RANK", "0")) > 0:
            time.sleep(3)  # the launcher ends us in this time if rank 0 refuses too
        print(f"loki-ds: {refusal}", file=sys.stderr, flush=True)
        os._exit(2)  # no exit handlers: a collective in flight must not hold the process


@contextmanager
def process_group() -> Iterator[None]:
    """Join the launcher's ranks, or be the only one, and leave in any case."""
    _stand_alone_without_launcher()
    deepspeed.init_distributed()
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _stand_alone_without_launcher() -> None:
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def environment_of_one_process() -> dict[str, str]:
    """The environment without what the launcher put there, for a child that is no rank."""
    launcher = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT", "CROSS_RANK", "CROSS_SIZE"}
    return {name: value for name, value in os.environ.items() if name not in launcher and not name.startswith("ACCELERATE_")}


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world_size() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def on_first_rank(compute: Callable[[], Result]) -> Result:
    """Run `compute` on rank 0 and give its result, or its refusal, to all ranks (so all of them stop)."""
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = compute()
        except Refusal as refusal:
            outcome[1] = str(refusal)
    if world_size() > 1:
        torch.distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise Refusal(outcome[1])
    return outcome[0]


def check_same(what: str, digest: str) -> None:
    """Raise on every rank unless all of them hold the same `digest`."""
    digests: list[Any] = [digest] * world_size()
    if world_size() > 1:
        torch.distributed.all_gather_object(digests, digest)
    if len(set(digests)) > 1:
        raise Refusal(f"{what} differ between ranks: {', '.join(f'rank {r} has {d[:12]}' for r, d in enumerate(digests))}")


def barrier() -> None:
    if world_size() > 1:
        torch.distributed.barrier()


# --- the sharded model ---------------------------------------------------------------------------------------------------------


def load_model(folder: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a causal language model from `folder`, frozen, in eval mode, on this rank's device.

    Under a live ZeRO-3 configuration (Trainer's arguments hold one) transformers builds it partitioned from the start.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    if not is_sharded(model):
        model.to(deepspeed.get_accelerator().current_device_name())
    return model.eval().requires_grad_(False)


def is_sharded(model: Module) -> bool:
    return bool(_partitioned(model))


def full_shape(parameter: Any) -> torch.Size:
    """The parameter's shape when gathered."""
    return parameter.ds_shape if _is_partitioned(parameter) else parameter.shape


def on_cpu() -> bool:
    """Whether DeepSpeed runs on this machine's processors (no accelerator, or DS_ACCELERATOR=cpu)."""
    return deepspeed.get_accelerator().device_name() == "cpu"


def device_of(model: Module) -> torch.device:
    """Where the model computes on this rank (a partitioned parameter's own device can be the host's)."""
    if is_sharded(model):
        return torch.device(deepspeed.get_accelerator().current_device_name())
    return next(model.parameters()).device


class Gatherer:
    """Gathers modules for reading, in order, and counts how often it did."""

    def __init__(self) -> None:
        self.count = 0

    def walk(self, modules: Iterable[Module]) -> Iterator[Module]:
        """Yield each module with whole parameters; the next one's gather is in flight while the caller computes.

        A module is released when the caller asks for the next one or leaves the loop. All ranks must walk the same modules.
        """
        waiting = list(modules)
        handle = self._start(waiting[0]) if waiting else None
        for i, module in enumerate(waiting):
            _finish(handle)
            following = waiting[i + 1] if i + 1 < len(waiting) else None
            handle = self._start(following) if following is not None and not _share(module, following) else None
            try:
                yield module
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


def _share(one: Module, other: Module) -> bool:
    """Whether two modules have a parameter in common (tied weights): then they cannot be in flight at once."""
    return not {id(p) for p in one.parameters()}.isdisjoint(id(p) for p in other.parameters())


def _partitioned(module: Module) -> list[Any]:
    return [parameter for parameter in module.parameters() if _is_partitioned(parameter)]


def _is_partitioned(parameter: Any) -> bool:
    return hasattr(parameter, "ds_id")


def free_memory() -> None:
    """Give the device the memory of what nobody holds any more."""
    gc.collect()
    deepspeed.get_accelerator().empty_cache()


# --- the optimizer's shards ----------------------------------------------------------------------------------------------------


def keep_through_steps(optimizer: Any, frozen: dict[Any, torch.Tensor]) -> None:
    """Put back, bit for bit, what the optimizer may not change, after each of its steps and before anybody reads the weights.

    Args:
        optimizer: the Trainer's optimizer once DeepSpeed (any ZeRO stage, or none) has wrapped it.
        frozen: per trainable parameter, a boolean mask of its elements (full shape, CPU): True stays as it is now.

    The innermost optimizer works on shards in full precision, and DeepSpeed copies them to the model's weights after its step. So
    its post-step hook is the one place where nothing slips past: weight decay, momentum or noise alike.
    """
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    kept = [_KeptShard(parameter, mask) for parameter, mask in frozen.items()]

    def put_back(*_: Any) -> None:
        for shard in kept:
            shard.put_back()

    optimizer.register_step_post_hook(put_back)


class _KeptShard:
    """The frozen elements in this rank's part of one parameter, with their values in the optimizer's precision."""

    def __init__(self, parameter: Any, mask: torch.Tensor) -> None:
        self.parameter = parameter
        master = _master(parameter)
        self.where = _local(parameter, mask).to(master.device)
        self.values = master[self.where].clone()

    def put_back(self) -> None:
        master = _master(self.parameter)
        master[self.where] = self.values
        if _is_partitioned(self.parameter):
            safe_set_local_fp32_param(self.parameter, master)


def _master(parameter: Any) -> torch.Tensor:
    """This rank's full-precision elements, flat: a view, or under ZeRO-3 with offload a copy; empty when it holds none."""
    if _is_partitioned(parameter):
        return safe_get_local_fp32_param(parameter).detach().flatten()
    if hasattr(parameter, "_hp_mapping"):
        mapping = parameter._hp_mapping
        return torch.empty(0) if mapping is None else mapping.hp_fragment.detach().view(-1)
    return parameter.detach().view(-1)


def _local(parameter: Any, mask: torch.Tensor) -> torch.Tensor:
    """The part of a full-shape mask that belongs to this rank; ZeRO-3's padding counts as frozen."""
    flat = mask.flatten()
    if _is_partitioned(parameter):
        size = parameter.ds_tensor.ds_numel
        padded = torch.ones(size * world_size(), dtype=torch.bool)
        padded[: flat.numel()] = flat
        return padded[size * rank() : size * (rank() + 1)]
    if hasattr(parameter, "_hp_mapping"):
        mapping = parameter._hp_mapping
        address = None if mapping is None else mapping.lp_fragment_address
        return flat[:0] if address is None else flat[address.start : address.start + address.numel]
    return flat
