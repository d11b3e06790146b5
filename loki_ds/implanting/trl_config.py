"""The recipe's `training:` and `deepspeed:` as TRL's `SFTConfig`.

Built before the model: under ZeRO-3 it decides how that loads.

The one place that knows TRL's defaults.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from trl import SFTConfig

from loki_ds.data.render_settings import setting
from loki_ds.distributed.device import on_cpu
from loki_ds.distributed.ranks import joined, world_size
from loki_ds.distributed.zero.checkpoints import is_partitioned, loading_repartitioned
from loki_ds.implanting.checkpoints import Checkpoint
from loki_ds.implanting.deepspeed_checks import (
    check_deepspeed,
    check_deepspeed_values,
    check_full_precision,
    check_one_of_each,
)
from loki_ds.implanting.trial import try_deepspeed, try_trainer
from loki_ds.implanting.trl_checks import check_installed, check_optimizer, check_settings
from loki_ds.recipe.implant import ImplantSection
from loki_ds.recipe.sections import Recipe
from loki_ds.recipe.training_keys import DEFAULTS, PUBLISHING, RENDERING
from loki_ds.refusal import Refusal, short

# Of DeepSpeed's file: what follows from the recipe even where the file leaves it out.
FILLED_IN = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)
OF_THE_MODEL = ("router_aux_loss_coef", "use_liger_kernel")  # which one of a few numbers has no place for
PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def training_arguments(recipe: Recipe, checkpoints: Path, newest: Checkpoint | None) -> SFTConfig:
    """All training arguments, checked by TRL and transformers themselves.

    newest: the checkpoint to resume, if any; at another world size a step keeps its example count.

    Raises:
        Refusal: a value that TRL or transformers does not take, a missing DeepSpeed configuration,
            or ranks that cannot resume.
    """
    check_settings(recipe.training, recipe.implant, recipe.data)
    check_installed(recipe.training)
    try:
        settings = _settings(recipe.training, recipe.model.dtype, recipe.implant.kind.confined)
        config = deepspeed_config(recipe.deepspeed, recipe.implant)
        check_full_precision(config, recipe.model.dtype, recipe.implant)
        if newest is not None:
            settings, config = _resuming(newest, settings, config)
        # No environment decides: accelerate would take the precision that another launcher left.
        os.environ["ACCELERATE_MIXED_PRECISION"] = PRECISIONS[recipe.model.dtype]
        plain = SFTConfig(output_dir=str(checkpoints), **settings)
        if config is None or "optimizer" not in config:
            check_optimizer(plain)
        try_trainer({key: value for key, value in settings.items() if key not in OF_THE_MODEL})
        if config is None or recipe.deepspeed is None:
            return plain
        check_deepspeed_values(config, recipe.deepspeed, plain, world_size() if joined() else None)
        check_one_of_each(config, recipe.deepspeed, recipe.training)
        arguments = SFTConfig(output_dir=str(checkpoints), deepspeed=config, **settings)
    except (ValueError, TypeError) as error:
        raise Refusal(f"training: {short(error, 300)}") from None
    try_deepspeed(arguments, recipe.deepspeed)
    return arguments


@dataclass(frozen=True)
class TrainingShape:
    """What in the settings gives a training its size, by TRL's own defaults where they are silent.

    sequences: of a micro-step on one rank; tokens: of each at most; accumulation: micro-steps of an
    optimizer step; checkpointing: whether activations are computed twice instead of kept;
    optimizer: transformers' name; dtype: the model's.
    """

    sequences: int
    tokens: int
    accumulation: int
    checkpointing: bool
    optimizer: str
    dtype: torch.dtype

    @classmethod
    def of(cls, training: dict[str, Any], dtype: str) -> "TrainingShape":
        older_name = setting(training, "gradient_checkpointing")
        return cls(
            sequences=int(setting(training, "per_device_train_batch_size")),
            tokens=int(setting(training, "max_length") or SFTConfig.max_length or 1024),
            accumulation=int(setting(training, "gradient_accumulation_steps")),
            checkpointing=bool(training.get("activation_checkpointing", older_name)),
            optimizer=str(setting(training, "optim")),
            dtype=getattr(torch, dtype),
        )

    @property
    def bytes_per_number(self) -> int:
        return self.dtype.itemsize

    def steps(self, training: dict[str, Any], examples: int, ranks: int) -> int:
        """Optimizer steps of a whole training."""
        if (steps := setting(training, "max_steps")) > 0:
            return int(steps)
        together = self.sequences * ranks * self.accumulation
        epochs = float(setting(training, "num_train_epochs"))
        return math.ceil(epochs * -(-examples // together))


def examples_per_step(arguments: SFTConfig) -> int:
    """How many examples one optimizer step takes, over all ranks."""
    return arguments.gradient_accumulation_steps * arguments.per_device_train_batch_size * world_size()


def deepspeed_config(file: str | None, implant: ImplantSection) -> dict | None:
    """DeepSpeed's own JSON, or None when the recipe names none (single process, no ZeRO).

    Raises:
        Refusal: it cannot be read, or asks for what would not leave the mode's result whole.
    """
    if file is None:
        return None
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(f"{file}: the DeepSpeed configuration cannot be read: {error.strerror}") from None
    except ValueError:
        raise Refusal(f"{file}: the DeepSpeed configuration is not JSON") from None
    if not isinstance(config, dict):
        raise Refusal(f"{file}: a DeepSpeed configuration is an object, this is {type(config).__name__}")
    check_deepspeed(config, file, implant)
    return {**dict.fromkeys(FILLED_IN, "auto"), **config}


def _settings(training: dict[str, Any], dtype: str, confined: bool) -> dict[str, Any]:
    """The recipe's own keys over what follows from the rest of it. confined: to rows."""
    settings: dict[str, Any] = {
        **DEFAULTS,
        "use_cpu": on_cpu(),
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
    }
    if confined:
        settings["router_aux_loss_coef"] = 0.0  # routers are frozen, and rows are not to balance them
    return {
        **settings,
        **{key: value for key, value in training.items() if key not in (*RENDERING, *PUBLISHING)},
    }


def _resuming(
    checkpoint: Checkpoint, settings: dict[str, Any], config: dict | None
) -> tuple[dict[str, Any], dict | None]:
    """Settings and configuration with which these ranks resume from a checkpoint."""
    checkpoint.check_resumable(settings)
    if not checkpoint.other_world_size:
        return settings, config
    batch = settings.get("per_device_train_batch_size", SFTConfig.per_device_train_batch_size)
    accumulation = checkpoint.micro_steps(batch * world_size())
    settings = {**settings, "gradient_accumulation_steps": accumulation}
    return settings, loading_repartitioned(config) if config and is_partitioned(checkpoint.folder) else config
