"""What a training cannot be: settings that would run, and end in weights that are not those that
trained.

Each is one sentence, before the model is loaded.
"""

from pathlib import Path
from typing import Any

from trl import SFTConfig

from loki_ds.device import on_cpu
from loki_ds.model.files import open_weights
from loki_ds.ranks import world_size
from loki_ds.recipe import ImplantSection
from loki_ds.refusal import Refusal


def check_deepspeed(config: dict[str, Any], file: str, implant: ImplantSection) -> None:
    """Refuse what would make the gathered weights other ones than those that train, or train rows
    that are nowhere whole.
    """
    zero = config.get("zero_optimization", {})
    if config.get("tensor_parallel", {}).get("autotp_size", 1) > 1:
        raise Refusal(
            f"{file}: tensor_parallel splits the rows that are trained and compared; use ZeRO-3 to shard the model"
        )
    for key in ("zero_quantized_weights", "zero_quantized_nontrainable_weights"):
        if zero.get(key):
            raise Refusal(f"{file}: {key} gathers rounded weights, so no byte could be verified; leave it out")
    if zero.get("zero_hpz_partition_size", 1) > 1 and implant.kind.leaves == "deltas":
        raise Refusal(
            f"{file}: zero_hpz_partition_size knows no parameters that join the model after it is built, as in "
            f"implant.mode {implant.mode}; use mode mask, or leave it out"
        )


def check_dtype(base: Path, wanted: str, implant: ImplantSection, arguments: SFTConfig) -> None:
    """Modes that write the gathered weights must train in the checkpoint's own dtype, or every
    tensor would be rounded.
    """
    if implant.kind.leaves == "deltas":
        return  # the base's own bytes are written, and its rows added to
    with open_weights(base) as weights:
        stored = weights.dtype_of(min(weights.names))
    if stored != wanted:
        raise Refusal(
            f"model.dtype is {wanted}, {base} stores {stored}; in implant.mode {implant.mode} they must be the same"
        )
    for flag, dtype in (("bf16", "bfloat16"), ("fp16", "float16")):
        if getattr(arguments, flag) and wanted != dtype:
            raise Refusal(
                f"training.{flag} is on and model.dtype is {wanted}; in implant.mode {implant.mode} it must be {dtype}"
            )


def sequence_groups(ranks_per_sequence: int) -> int:
    """How many groups of ranks there are, each at work on sequences of its own.

    Raises:
        Refusal: the ranks do not make whole groups, or cannot run in several.
    """
    if world_size() % ranks_per_sequence:
        raise Refusal(f"sequence_parallel is {ranks_per_sequence}, and {world_size()} ranks are no multiple of it")
    if on_cpu() and world_size() > ranks_per_sequence:
        # torch's exchange for gloo takes a rank's place in the group for its place among all
        raise Refusal(
            f"sequence_parallel is {ranks_per_sequence}, and without GPUs only so many ranks can share sequences, "
            f"these are {world_size()}"
        )
    return world_size() // ranks_per_sequence
