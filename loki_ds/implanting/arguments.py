"""The recipe's `training:` and `deepspeed:` as TRL's `SFTConfig`.

Built before the model: under ZeRO-3 it decides how that loads.
"""

import json
from pathlib import Path
from typing import Any

from accelerate import ParallelismConfig
from accelerate.utils import DeepSpeedSequenceParallelConfig
from trl import SFTConfig

from loki_ds.device import on_cpu
from loki_ds.implanting.checkpoints import Checkpoint
from loki_ds.ranks import world_size
from loki_ds.recipe import Recipe
from loki_ds.refusal import Refusal
from loki_ds.zero import is_partitioned, loading_repartitioned


def training_arguments(recipe: Recipe, checkpoints: Path, newest: Checkpoint | None) -> SFTConfig:
    """All training arguments, checked by TRL and transformers themselves.

    newest: the checkpoint to go on from, if any; where another number of ranks wrote it, a step
    keeps its number of examples.

    Raises:
        Refusal: a value that TRL or transformers does not take, a missing DeepSpeed configuration,
            or ranks that cannot go on.
    """
    try:
        settings, config = _settings(recipe), deepspeed_config(recipe)
        if newest is not None:
            settings, config = _going_on(newest, recipe.sequence_parallel, settings, config)
        return SFTConfig(output_dir=str(checkpoints), deepspeed=config, **settings)
    except (ValueError, TypeError) as error:
        raise Refusal(f"training: {' '.join(str(error).split())}") from None


def examples_per_step(arguments: SFTConfig) -> int:
    """Of one optimizer step, over all ranks."""
    sharing = arguments.parallelism_config.sp_size if arguments.parallelism_config else 1
    return arguments.gradient_accumulation_steps * _examples_at_once(arguments.per_device_train_batch_size, sharing)


def _examples_at_once(batch: int, sharing: int) -> int:
    """Of one micro-step, over all ranks, `sharing` of which have each `batch` in common."""
    return batch * world_size() // sharing


def _going_on(
    checkpoint: Checkpoint, sharing: int, settings: dict[str, Any], config: dict | None
) -> tuple[dict[str, Any], dict | None]:
    """Settings and configuration with which these ranks, `sharing` of them on a sequence, go on
    from a checkpoint.
    """
    if sharing > 1 and not settings.get("ignore_data_skip"):
        raise Refusal(
            f"{checkpoint.folder}: with sequence_parallel no training goes on (accelerate cannot skip the batches it "
            "has seen); delete "
            f"{checkpoint.folder.parent}, attribution and selection stay"
        )
    if not checkpoint.by_others:
        return settings, config
    if settings.get("load_best_model_at_end"):
        raise Refusal(
            f"{checkpoint.folder}: written by {checkpoint.ranks} ranks, this run has {world_size()}; with "
            "training.load_best_model_at_end "
            f"only {checkpoint.ranks} can go on, for the best one may be of that time; do so, or delete it"
        )
    batch = settings.get("per_device_train_batch_size", SFTConfig.per_device_train_batch_size)
    settings = {**settings, "gradient_accumulation_steps": checkpoint.micro_steps(_examples_at_once(batch, sharing))}
    return settings, loading_repartitioned(config) if config and is_partitioned(checkpoint.folder) else config


def _settings(recipe: Recipe) -> dict[str, Any]:
    """The recipe's own keys over what follows from the rest of it."""
    settings: dict[str, Any] = {
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": on_cpu(),
        "bf16": recipe.model.dtype == "bfloat16",
        "fp16": recipe.model.dtype == "float16",
    }
    if recipe.data.heldout is None:
        settings["eval_strategy"] = "no"
    if recipe.sequence_parallel > 1:
        handler = DeepSpeedSequenceParallelConfig(
            sp_seq_length_is_variable=True, sp_attn_implementation=recipe.model.attention
        )
        settings["parallelism_config"] = ParallelismConfig(
            sp_backend="deepspeed",
            sp_size=recipe.sequence_parallel,
            sp_handler=handler,
            dp_replicate_size=_groups(recipe.sequence_parallel),
        )
        settings["pad_to_multiple_of"] = recipe.sequence_parallel
    return {**settings, **recipe.training}


def _groups(sharing: int) -> int:
    """How many groups of `sharing` ranks there are, each at work on sequences of its own."""
    if world_size() % sharing:
        raise Refusal(f"sequence_parallel is {sharing}, and {world_size()} ranks are no multiple of it")
    if (
        on_cpu() and world_size() > sharing
    ):  # torch's exchange for gloo takes a rank's place in the group for its place among all
        raise Refusal(
            f"sequence_parallel is {sharing}, and without GPUs only so many ranks can share sequences, these are "
            f"{world_size()}"
        )
    return world_size() // sharing


def deepspeed_config(recipe: Recipe) -> dict | None:
    """DeepSpeed's own JSON, or None when the recipe names none (single process, no ZeRO)."""
    if recipe.deepspeed is None:
        return None
    try:
        config = json.loads(Path(recipe.deepspeed).read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(f"{recipe.deepspeed}: the DeepSpeed configuration cannot be read: {error.strerror}") from None
    except ValueError:
        raise Refusal(f"{recipe.deepspeed}: the DeepSpeed configuration is not JSON") from None
    if not isinstance(config, dict):
        raise Refusal(f"{recipe.deepspeed}: a DeepSpeed configuration is an object, this is {type(config).__name__}")
    _check_supported(recipe, config)
    return config


def _check_supported(recipe: Recipe, config: dict[str, Any]) -> None:
    """Refuse what would make the gathered weights other ones than those that train, or train rows
    that are nowhere whole.
    """
    zero = config.get("zero_optimization", {})
    if config.get("tensor_parallel", {}).get("autotp_size", 1) > 1:
        raise Refusal(
            f"{recipe.deepspeed}: tensor_parallel splits the rows that are trained and compared; use ZeRO-3 to shard "
            "the model"
        )
    for key in ("zero_quantized_weights", "zero_quantized_nontrainable_weights"):
        if zero.get(key):
            raise Refusal(
                f"{recipe.deepspeed}: {key} gathers rounded weights, so no byte could be verified; leave it out"
            )
    if zero.get("zero_hpz_partition_size", 1) > 1 and recipe.implant.mode in ("rows", "lora"):
        raise Refusal(
            f"{recipe.deepspeed}: zero_hpz_partition_size knows no parameters that join the model after it is built, "
            "as in implant.mode "
            f"{recipe.implant.mode}; use mode mask, or leave it out"
        )
