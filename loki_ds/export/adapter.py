"""A LoKI implant as a stock PEFT LoRA adapter: nothing of ours is needed to load, merge or serve.

`W + B A` with `lora_B [d_model, r]` and `lora_A [r, d_ff]`. For whole rows, `r = k`, `lora_B`
selects the rows (one 1 in each column) and `lora_A` is the delta; for `lora` mode the two factors
are the trained ones, `lora_B` zero outside the rows. Scaling is 1, and all layers have one rank
(with zeros where a layer has fewer rows): not every engine reads PEFT's patterns by layer.

The weights of routed experts are one parameter, which PEFT adapts by its name
(`target_parameters`): `lora_A [E r, d_ff]`, expert by expert, and `lora_B [d_model, r E]`, in which
an expert's columns are `E` apart.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from loki_ds.disk.files import write_json, written_whole

NAMED = ("peft_type", "task_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path")


@dataclass(frozen=True)
class Factors:
    """One weight's delta as `lora_B [d_model, r]` and `lora_A [r, d_ff]`; of experts, one pair for
    each: `[E, d_model, r]` and `[E, r, d_ff]`.
    """

    lora_b: Tensor
    lora_a: Tensor

    @property
    def rank(self) -> int:
        return self.lora_a.shape[-2]

    def as_stored(self, rank: int) -> tuple[Tensor, Tensor]:
        """`lora_A` and `lora_B` as PEFT has them, filled up to a rank with zeros."""
        a = pad(self.lora_a, (0, 0, 0, rank - self.rank))
        b = pad(self.lora_b, (0, rank - self.rank))
        if a.dim() == 3:
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
        return a.contiguous(), b.contiguous()


def from_rows(rows: Tensor, delta: Tensor, d_model: int) -> Factors:
    """Factors of a delta `[k, d_ff]`, of experts `[E, k, d_ff]`, on whole rows `[k]`."""
    selector = torch.zeros(d_model, len(rows), dtype=delta.dtype)
    selector[rows, torch.arange(len(rows))] = 1
    return Factors(selector.expand(*delta.shape[:-2], *selector.shape), delta)


def from_low_rank(rows: Tensor, a: Tensor, b: Tensor, d_model: int) -> Factors:
    """Factors of `a [k, r] @ b [r, d_ff]` on rows `[k]`; of experts, each with its own."""
    spread = torch.zeros(*a.shape[:-2], d_model, a.shape[-1], dtype=a.dtype)
    spread[..., rows, :] = a
    return Factors(spread, b)


class Adapted(NamedTuple):
    """A weight as PEFT finds it in the model: the module's name, for example
    `model.layers.0.mlp.down_proj`, and the parameter's where PEFT is to go by that.

    around: how many of the module's later parameters are adapted; PEFT wraps a module once for
    each, the first inmost.
    """

    module: str
    parameter: str | None = None
    around: int = 0


def save_adapter(
    factors: dict[Adapted, Factors],
    base_model: str,
    folder: Path,
    rows_last: bool = False,
    revision: str | None = None,
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    revision: of the base on the hub, where it is not the newest. rows_last: whether linear
    layers lie that way (GPT-2's)."""
    rank = max(factor.rank for factor in factors.values())
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base_model,
        revision=revision,
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(adapted.module for adapted in factors if adapted.parameter is None),
        target_parameters=sorted(f"{adapted.module}.{adapted.parameter}" for adapted in factors if adapted.parameter)
        or None,
        fan_in_fan_out=rows_last,
        inference_mode=True,
    )
    tensors = {}
    for adapted, factor in factors.items():
        name = f"base_model.model.{adapted.module}{'.base_layer' * adapted.around}"
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = factor.as_stored(rank)
    with written_whole(folder) as aside:
        aside.mkdir(parents=True)
        write_json(aside / "adapter_config.json", _said(config))
        save_file(tensors, aside / "adapter_model.safetensors", {"format": "pt"})


def _said(config: LoraConfig) -> dict[str, Any]:
    """Keys that differ from PEFT's defaults, as engines read them, and those naming the method."""
    defaults, own = LoraConfig().to_dict(), {**config.to_dict(), "target_modules": sorted(config.target_modules or ())}
    return {key: value for key, value in own.items() if key in NAMED or value != defaults[key]}
