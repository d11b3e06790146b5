"""The recipe's `training:` and `deepspeed:` as TRL's `SFTConfig`. Built before the model: under ZeRO-3 it decides how that loads."""

import json
from pathlib import Path
from typing import Any

from trl import SFTConfig

from loki_ds.device import on_cpu
from loki_ds.recipe import Recipe
from loki_ds.refusal import Refusal


def training_arguments(recipe: Recipe, checkpoints: Path) -> SFTConfig:
    """All training arguments, checked by TRL and transformers themselves.

    Raises:
        Refusal: a value that TRL or transformers does not take, or a missing DeepSpeed configuration.
    """
    try:
        return SFTConfig(output_dir=str(checkpoints), deepspeed=deepspeed_config(recipe), **_settings(recipe))
    except (ValueError, TypeError) as error:
        raise Refusal(f"training: {' '.join(str(error).split())}") from None


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
    return {**settings, **recipe.training}


def deepspeed_config(recipe: Recipe) -> dict | None:
    """DeepSpeed's own JSON, or None when the recipe names none (single process, no ZeRO)."""
    if recipe.deepspeed is None:
        return None
    try:
        return json.loads(Path(recipe.deepspeed).read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(f"{recipe.deepspeed}: the DeepSpeed configuration cannot be read: {error.strerror}") from None
    except ValueError:
        raise Refusal(f"{recipe.deepspeed}: the DeepSpeed configuration is not JSON") from None
