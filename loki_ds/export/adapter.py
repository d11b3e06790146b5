"""A LoKI implant as a stock PEFT LoRA adapter: nothing of ours is needed to load, merge or serve
it.

`W + B A` with `lora_B [d_model, r]` and `lora_A [r, d_ff]`. For whole rows, `r = k`, `lora_B`
selects the rows (one 1 in each column) and `lora_A` is the delta; for `lora` mode the two factors
are the trained ones, `lora_B` zero outside the rows. Scaling is 1, and all layers have one rank
(with zeros where a layer has fewer rows): not every engine reads PEFT's patterns by layer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from loki_ds.run_folder import write_json, written_whole

NAMED = ("peft_type", "task_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path")


@dataclass(frozen=True)
class Factors:
    """One layer's delta as `lora_B [d_model, r]` and `lora_A [r, d_ff]`."""

    lora_b: Tensor
    lora_a: Tensor


def from_rows(rows: Tensor, delta: Tensor, d_model: int) -> Factors:
    """Factors of a delta `[k, d_ff]` on whole rows `[k]`."""
    selector = torch.zeros(d_model, len(rows), dtype=delta.dtype)
    selector[rows, torch.arange(len(rows))] = 1
    return Factors(selector, delta)


def from_low_rank(rows: Tensor, a: Tensor, b: Tensor, d_model: int) -> Factors:
    """Factors of `a [k, r] @ b [r, d_ff]` on rows `[k]`."""
    spread = torch.zeros(d_model, a.shape[1], dtype=a.dtype)
    spread[rows] = a
    return Factors(spread, b)


def save_adapter(factors: dict[str, Factors], base_model: str, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    factors: by the module's name in the model, for example `model.layers.0.mlp.down_proj`.
    """
    rank = max(found.lora_a.shape[0] for found in factors.values())
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base_model,
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(factors),
        inference_mode=True,
    )
    tensors = {}
    for name, found in factors.items():
        padding = rank - found.lora_a.shape[0]
        tensors[f"base_model.model.{name}.lora_A.weight"] = pad(found.lora_a, (0, 0, 0, padding)).contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = pad(found.lora_b, (0, padding)).contiguous()
    with written_whole(folder) as aside:
        aside.mkdir(parents=True)
        write_json(aside / "adapter_config.json", _said(config))
        save_file(tensors, aside / "adapter_model.safetensors", {"format": "pt"})


def _said(config: LoraConfig) -> dict[str, Any]:
    """The keys that differ from PEFT's defaults, as every engine reads them, and those that name
    the method.
    """
    defaults, own = LoraConfig().to_dict(), {**config.to_dict(), "target_modules": sorted(config.target_modules or ())}
    return {key: value for key, value in own.items() if key in NAMED or value != defaults[key]}
