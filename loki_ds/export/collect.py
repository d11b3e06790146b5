"""From the ranks' model to rank 0: the deltas in memory, or gathered weights or adapter as files.

All functions are called on every rank; what they return is for rank 0.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel
from trl import SFTTrainer

from loki_ds.disk.files import aside_of, put_in_place, remove
from loki_ds.disk.run_folder import RunFolder
from loki_ds.distributed.ranks import barrier, rank
from loki_ds.distributed.zero.model import Gatherer
from loki_ds.export.checkpoint import write_trained
from loki_ds.implanting.rows import RowDelta
from loki_ds.model.anatomy import sites
from loki_ds.model.expert_rows import side_by_side
from loki_ds.recipe.modes import Mode


@dataclass(frozen=True)
class WeightDelta:
    """One weight's trained delta on the CPU: `delta [k, d_ff]`, of experts `[E, k, d_ff]`, and in
    `lora` mode its factors (scaling in `a`).
    """

    delta: Tensor
    a: Tensor | None = None
    b: Tensor | None = None


@dataclass(frozen=True)
class Deltas:
    """What a training of deltas gives: by layer number, for each layer with selected rows, weight
    by weight in the order of its `Site`.
    """

    layers: dict[int, list[WeightDelta]]

    def of(self, layer: int) -> Tensor:
        """A whole layer's, `[k, width]`."""
        deltas = [weight.delta for weight in self.layers[layer]]
        return torch.cat([delta if delta.dim() == 2 else side_by_side(delta) for delta in deltas], dim=1)


@dataclass(frozen=True)
class Weights:
    """What a training of the model's own weights gives: a checkpoint folder."""

    folder: Path


@dataclass(frozen=True)
class Adapter:
    """What a training of PEFT's adapter gives: the adapter's folder."""

    folder: Path


Trained = Deltas | Weights | Adapter


def collect(trainer: SFTTrainer, model: PreTrainedModel, mode: Mode, base: Path, folder: RunFolder) -> Trained:
    """Gather what the mode leaves. base: the folder whose files a whole model's become."""
    if mode.leaves == "deltas":
        return Deltas(collect_deltas(model))
    if mode.leaves == "adapter":
        save_adapter_of(trainer, folder.adapter)
        return Adapter(folder.adapter)
    engine = trainer.deepspeed if trainer.is_deepspeed_enabled else trainer.model
    tensors = trainer.accelerator.get_state_dict(engine)  # as Trainer gathers them; on rank 0
    if rank() == 0:
        write_trained(base, model, tensors, folder.model)
    barrier()
    return Weights(folder.model)


@torch.no_grad()
def collect_deltas(model: Module) -> dict[int, list[WeightDelta]]:
    """Gather the deltas layer by layer; on ranks other than the first the result is empty."""
    deltas: dict[int, list[WeightDelta]] = {}
    gatherer = Gatherer()
    for i, site in enumerate(sites(model)):
        modules = [down.module for down in site.downs if isinstance(down.module, RowDelta)]
        if not modules:
            continue
        with gatherer.whole(*modules):
            if rank() == 0:
                deltas[i] = [_delta_of(module) for module in modules]
    return deltas


def _delta_of(module: RowDelta) -> WeightDelta:
    delta = module.whole_delta().cpu().clone()
    if not hasattr(module, "delta_a"):
        return WeightDelta(delta)
    return WeightDelta(delta, module.scaling * module.delta_a.cpu(), module.delta_b.cpu().clone())


def save_adapter_of(trainer: SFTTrainer, folder: Path) -> None:
    """Gather the adapter and write it as PEFT would; rank 0 writes."""
    aside = aside_of(folder)
    if rank() == 0:
        remove(aside)
    barrier()
    trainer.save_model(str(aside))
    if rank() == 0:
        (aside / "training_args.bin").unlink(missing_ok=True)  # a pickle, and no part of the adapter
        put_in_place(folder)
    barrier()
