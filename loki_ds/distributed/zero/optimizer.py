"""What this rank's optimizer steps of each parameter: a shard in full precision, under any ZeRO
stage or none, to be read and changed after each of its steps.

Knows where DeepSpeed keeps the shards. Knows nothing of why anybody changes them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param
from torch import Tensor

from loki_ds.distributed.ranks import rank, world_size
from loki_ds.distributed.zero.sharding import is_partitioned


def after_each_step(optimizer: Any, change: Callable[[], None]) -> None:
    """Call `change` after each step of a group and before anybody reads the group's weights.

    The innermost optimizer works on shards in full precision, and DeepSpeed copies them to the
    model's weights after its step. So its post-step hook is the one place where nothing slips past:
    weight decay, momentum or noise alike.

    Args:
        optimizer: the Trainer's, once DeepSpeed (any ZeRO stage, or none) has wrapped it.
    """
    _innermost(optimizer).register_step_post_hook(lambda *_: change())


def just_stepped(optimizer: Any) -> set[int]:
    """The storages that the step before held, for `Shard.lies_in`.

    DeepSpeed has the innermost optimizer step one group after the other (weights with decay and
    without, under ZeRO-3 parts of a billion numbers), each copied to the model's weights right
    after. So a change that must not come twice is made to a shard after its own group's step.
    """
    return {_storage(tensor) for group in _innermost(optimizer).param_groups for tensor in group["params"]}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def learning_rate(optimizer: Any) -> float:
    """The learning rate of the step that is just done."""
    return _innermost(optimizer).param_groups[0]["lr"]


def _innermost(optimizer: Any) -> Any:
    """The optimizer that steps, inside what accelerate and DeepSpeed wrap around it."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


class Shard:
    """This rank's part of one parameter, as the optimizer steps it."""

    def __init__(self, parameter: Any) -> None:
        self.parameter = parameter

    @property
    def is_part(self) -> bool:
        """Whether other ranks hold other parts."""
        return is_partitioned(self.parameter) or hasattr(self.parameter, "_hp_mapping")

    def read(self) -> Tensor:
        """The full-precision elements, flat, where the optimizer keeps them: a view, or a copy on
        the device of what ZeRO-3 swaps out to a disk; empty when this rank holds none.
        """
        if is_partitioned(self.parameter):
            zero, group, start, count = self._place()
            if zero._swappable_optimizer_subgroup(group):
                return safe_get_local_fp32_param(self.parameter).detach().flatten()
            return zero.fp32_partitioned_groups_flat[group].detach()[start : start + count]
        if hasattr(self.parameter, "_hp_mapping"):
            mapping = self.parameter._hp_mapping
            return torch.empty(0) if mapping is None else mapping.hp_fragment.detach().view(-1)
        return self.parameter.detach().view(-1)

    def write(self, elements: Tensor) -> None:
        """Make what `read` gave, changed in place, the parameter's; a view is already."""
        if is_partitioned(self.parameter):
            safe_set_local_fp32_param(self.parameter, elements)

    def lies_in(self, stepped: set[int]) -> bool:
        """Whether this rank's part is among what was `just_stepped`."""
        if is_partitioned(self.parameter):
            zero, group, *_ = self._place()
            return _storage(zero.fp32_partitioned_groups_flat[group]) in stepped
        return _storage(self.read()) in stepped

    def _place(self) -> tuple[Any, int, int, int]:
        """ZeRO-3's optimizer, and where in its flat groups the part lies: group, start, count."""
        zero = self.parameter._z3_optimizer
        return zero, *zero.grad_position[zero.get_param_id(self.parameter)]

    def part_of(self, noted: "Noted") -> Tensor:
        """This rank's part of the noted values, in full precision."""
        return (noted.values if noted.is_part else self.mine(noted.values, padding=0)).to(self.read())

    def mine(self, whole: Tensor, padding: Any) -> Tensor:
        """The part of a tensor of the parameter's full shape that belongs to this rank, flat.

        padding: what stands where ZeRO-3 fills the last shard up.
        """
        flat = whole.flatten()
        if is_partitioned(self.parameter):
            size = self.parameter.ds_tensor.ds_numel
            padded = torch.full((size * world_size(),), padding, dtype=whole.dtype)
            padded[: flat.numel()] = flat
            return padded[size * rank() : size * (rank() + 1)]
        if hasattr(self.parameter, "_hp_mapping"):
            mapping = self.parameter._hp_mapping
            address = None if mapping is None else mapping.lp_fragment_address
            return flat[:0] if address is None else flat[address.start : address.start + address.numel]
        return flat


class Noted(NamedTuple):
    """A parameter's values before an engine has it, on the CPU: whole, or this rank's part of what
    ZeRO-3 partitioned when it was loaded.
    """

    values: Tensor
    is_part: bool

    @classmethod
    def of(cls, parameter: Any) -> "Noted":
        is_part = is_partitioned(parameter)
        return cls((parameter.ds_tensor if is_part else parameter).detach().cpu().clone(), is_part)
