"""ZeRO: the one module that knows DeepSpeed's partitioning.

It loads a model that is sharded while it is built, gathers modules for reading with the next gather
already in flight, and reaches an optimizer's shards. The same calls work with ZeRO off and on a
single process. It knows nothing of attribution, rows or recipes' meaning.
"""

from argparse import Namespace
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param
from torch import nn
from torch.nn import Module
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations import deepspeed as hf_deepspeed

from loki_ds.ranks import on_first_rank, rank, world_size
from loki_ds.refusal import Refusal
from loki_ds.run_folder import written_whole

# --- the sharded model ----------------------------------------------------------------------------


def load_model(folder: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a causal language model from `folder`, frozen, in eval mode, on this rank's device.

    Under a live ZeRO-3 configuration (Trainer's arguments hold one) transformers builds it
    partitioned from the start.
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


def device_of(model: Module) -> torch.device:
    """Where the model computes on this rank (a partitioned parameter's own device can be the
    host's).
    """
    if is_sharded(model):
        return torch.device(deepspeed.get_accelerator().current_device_name())
    return next(model.parameters()).device


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
            handle = self._start(following) if following is not None and not _share(module, following) else None
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


def _share(one: Module, other: Module) -> bool:
    """Whether two modules have a parameter in common (tied weights): then they cannot be in flight
    at once.
    """
    return not {id(p) for p in one.parameters()}.isdisjoint(id(p) for p in other.parameters())


def _partitioned(module: Module) -> list[Any]:
    return [parameter for parameter in module.parameters() if _is_partitioned(parameter)]


def _is_partitioned(parameter: Any) -> bool:
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


# --- checkpoints ----------------------------------------------------------------------------------


def is_partitioned(checkpoint: Path) -> bool:
    """Whether the ranks that wrote a checkpoint each hold a part of it, so that only as many can
    load it as it is.
    """
    return any(checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt"))


def loading_repartitioned(config: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's configuration with which it loads what `repartition` wrote."""
    return {**config, "checkpoint": {**config.get("checkpoint", {}), "load_universal": True}}


def repartition(checkpoint: Path, trained: Iterable[str]) -> None:
    """Write a partitioned checkpoint's state once more, for any number of ranks: DeepSpeed's
    universal checkpoint. One rank's work.

    trained: names of the parameters whose weights and moments must be in it.

    Raises:
        Refusal: the optimizer's state is not Adam's, the only one that DeepSpeed converts.
    """
    if not is_partitioned(checkpoint):
        return
    step = checkpoint / (checkpoint / "latest").read_text().strip()
    with written_whole(checkpoint / "universal") as aside:
        settings = {
            "num_extract_workers": 1,
            "num_merge_workers": 1,
            "keep_temp_folder": False,
            "strict": True,
            "inject_missing_state": True,
        }
        try:
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                ds_to_universal.main(Namespace(input_folder=str(step), output_folder=str(aside), **settings))
            whole = all(
                (aside / "zero" / name / f"{part}.pt").exists()
                for name in trained
                for part in ("fp32", "exp_avg", "exp_avg_sq")
            )
        except KeyError:
            whole = False
        if not whole:
            raise Refusal(
                f"{checkpoint}: another number of ranks wrote it, and only the state of AdamW can be divided anew; "
                "go on with as many as "
                "wrote it, or delete it"
            )
    (checkpoint / "latest_universal").write_text("universal")


def name_newest_everywhere(checkpoint: Path) -> None:
    """Let every node know a checkpoint's newest part: DeepSpeed notes it (`latest`) on rank 0's
    disk only. All ranks call it.
    """
    file = checkpoint / "latest"
    newest = on_first_rank(lambda: file.read_text() if file.exists() else None)
    if newest is not None and checkpoint.is_dir() and not file.exists():
        file.write_text(newest)


# --- the optimizer's shards -----------------------------------------------------------------------


def keep_through_steps(optimizer: Any, frozen: dict[Any, torch.Tensor]) -> None:
    """Put back, bit for bit, what the optimizer may not change, after each of its steps and before
    anybody reads the weights.

    Args:
        optimizer: the Trainer's optimizer once DeepSpeed (any ZeRO stage, or none) has wrapped it.
        frozen: per trainable parameter, a boolean mask of its elements (full shape, CPU): True
            stays as it is now.

    The innermost optimizer works on shards in full precision, and DeepSpeed copies them to the
    model's weights after its step. So its post-step hook is the one place where nothing slips past:
    weight decay, momentum or noise alike.
    """
    kept = [_KeptShard(parameter, mask) for parameter, mask in frozen.items()]

    def put_back(*_: Any) -> None:
        for shard in kept:
            shard.put_back()

    _innermost(optimizer).register_step_post_hook(put_back)


def pull_to_start(optimizer: Any, parameters: Iterable[Any], strength: float) -> None:
    """After each step of the optimizer, pull the parameters back towards what they are now:
    decoupled L2-SP (Li et al., ICML 2018).

    `p <- p - lr * strength * (p - start)`, on each rank's shards in full precision.
    """
    innermost = _innermost(optimizer)
    starts = [(parameter, _master(parameter).clone()) for parameter in parameters]

    def pull(*_: Any) -> None:
        share = innermost.param_groups[0]["lr"] * strength
        for parameter, start in starts:
            _write_back(parameter, _master(parameter).lerp_(start, share))

    innermost.register_step_post_hook(pull)


def rewrite_rows_through_steps(
    optimizer: Any, rules: Mapping[Any, tuple[list[int], Callable[[torch.Tensor], torch.Tensor]]]
) -> None:
    """After each step of the optimizer, replace some whole rows of parameters by a function of
    them, on every rank alike.

    Args:
        rules: per trainable parameter `[n, m]` the rows and what to make of them, `[k, m]` to `[k,
            m]` in full precision. The rows are put together from all ranks' shards for it: k * m
            numbers are summed over the ranks each step.
    """
    gathered = [(_RowShard(parameter, rows), rewrite) for parameter, (rows, rewrite) in rules.items()]

    def rewrite_all(*_: Any) -> None:
        for shard, rewrite in gathered:
            shard.write(rewrite(shard.read()))

    _innermost(optimizer).register_step_post_hook(rewrite_all)


def _innermost(optimizer: Any) -> Any:
    """The optimizer that steps, inside what accelerate and DeepSpeed wrap around it."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


class _KeptShard:
    """The frozen elements in this rank's part of one parameter, with their values in the
    optimizer's precision.
    """

    def __init__(self, parameter: Any, mask: torch.Tensor) -> None:
        self.parameter = parameter
        master = _master(parameter)
        self.where = _local(parameter, mask, padding=True).to(master.device)
        self.values = master[self.where].clone()

    def put_back(self) -> None:
        master = _master(self.parameter)
        master[self.where] = self.values
        _write_back(self.parameter, master)


class _RowShard:
    """This rank's part of some rows of one parameter: where it lies in the shard, and in the rows
    `[k, m]`.
    """

    def __init__(self, parameter: Any, rows: list[int]) -> None:
        self.parameter, (n, m) = parameter, full_shape(parameter)
        self.shape = (len(rows), m)
        place = torch.full((n, m), -1, dtype=torch.int64)
        place[rows] = torch.arange(len(rows) * m).view(self.shape)
        mine, where = _local(parameter, place, padding=-1), _master(parameter).device
        self.here, self.there = (mine >= 0).nonzero().flatten().to(where), mine[mine >= 0].to(where)

    def read(self) -> torch.Tensor:
        """The whole rows, from all ranks, on this rank's device."""
        master, device = _master(self.parameter), deepspeed.get_accelerator().current_device_name()
        whole = torch.zeros(self.shape, dtype=master.dtype, device=device)
        whole.view(-1)[self.there.to(device)] = master[self.here].to(device)
        if _is_partitioned(self.parameter) or hasattr(self.parameter, "_hp_mapping"):
            torch.distributed.all_reduce(whole)
        return whole

    def write(self, whole: torch.Tensor) -> None:
        master = _master(self.parameter)
        if self.here.numel():
            master[self.here] = whole.reshape(-1).to(master)[self.there]
        _write_back(self.parameter, master)


def _master(parameter: Any) -> torch.Tensor:
    """This rank's full-precision elements, flat: a view, or under ZeRO-3 with offload a copy; empty
    when it holds none.
    """
    if _is_partitioned(parameter):
        return safe_get_local_fp32_param(parameter).detach().flatten()
    if hasattr(parameter, "_hp_mapping"):
        mapping = parameter._hp_mapping
        return torch.empty(0) if mapping is None else mapping.hp_fragment.detach().view(-1)
    return parameter.detach().view(-1)


def _write_back(parameter: Any, master: torch.Tensor) -> None:
    """Make a changed `_master` the parameter's; a view is already."""
    if _is_partitioned(parameter):
        safe_set_local_fp32_param(parameter, master)


def _local(parameter: Any, whole: torch.Tensor, padding: Any) -> torch.Tensor:
    """The part of a full-shape tensor that belongs to this rank, with ZeRO-3's padding filled
    in.
    """
    flat = whole.flatten()
    if _is_partitioned(parameter):
        size = parameter.ds_tensor.ds_numel
        padded = torch.full((size * world_size(),), padding, dtype=whole.dtype)
        padded[: flat.numel()] = flat
        return padded[size * rank() : size * (rank() + 1)]
    if hasattr(parameter, "_hp_mapping"):
        mapping = parameter._hp_mapping
        address = None if mapping is None else mapping.lp_fragment_address
        return flat[:0] if address is None else flat[address.start : address.start + address.numel]
    return flat
