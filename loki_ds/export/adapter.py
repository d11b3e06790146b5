"""A LoKI implant as a stock PEFT LoRA adapter: nothing of ours is needed to load, merge or serve
it.

`W + B A` with `lora_B [d_model, r]` and `lora_A [r, d_ff]`. For whole rows, `r = k`, `lora_B`
selects the rows (one 1 in each column) and `lora_A` is the delta; for `lora` mode the two factors
are the trained ones, `lora_B` zero outside the rows. Scaling is 1 in every layer.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor

from loki_ds.run_folder import written_whole


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
    ranks = {name: found.lora_a.shape[0] for name, found in factors.items()}
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base_model,
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        target_modules=sorted(factors),
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
        lora_dropout=0.0,
        bias="none",
        inference_mode=True,
    )
    tensors = {}
    for name, found in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = found.lora_a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = found.lora_b.contiguous()
    with written_whole(folder) as aside:
        aside.mkdir(parents=True)
        config.save_pretrained(str(aside))
        save_file(tensors, aside / "adapter_model.safetensors", {"format": "pt"})
