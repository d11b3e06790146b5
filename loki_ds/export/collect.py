"""From the ranks' model to rank 0: the deltas in memory, or gathered weights or adapter as files.

All functions are called on every rank; what they return is for rank 0.
"""

from collections.abc import Sequence
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
from loki_ds.distributed.zero.gathering import Gatherer
from loki_ds.export.checkpoint import write_trained
from loki_ds.implanting.rows import RowDelta, delta_on
from loki_ds.model.expert_rows import side_by_side
from loki_ds.model.row_blocks import named_blocks
from loki_ds.recipe.modes import Mode
from loki_ds.selection.positions import Positions


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
    """What a training of deltas gives: by the number of a block with selected rows, weight by
    weight in the order of its `RowBlock`.
    """

    layers: dict[int, list[WeightDelta]]

    def of(self, i: int) -> Tensor:
        """A whole block's, `[k, width]`."""
        deltas = [weight.delta for weight in self.layers[i]]
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


def collect(
    trainer: SFTTrainer,
    model: PreTrainedModel,
    mode: Mode,
    positions: Positions | None,
    base: Path,
    folder: RunFolder,
) -> Trained:
    """Gather what the mode leaves. base: the folder whose files a whole model's become."""
    if mode.leaves == "deltas":
        return Deltas(collect_deltas(model, positions.blocks if positions else None))
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
def collect_deltas(model: Module, names: Sequence[str] | None = None) -> dict[int, list[WeightDelta]]:
    """Gather the deltas block by block; on ranks other than the first the result is empty.

    names: of the blocks; every layer's down-projections when not given.
    """
    deltas: dict[int, list[WeightDelta]] = {}
    gatherer = Gatherer()
    for i, row_block in enumerate(named_blocks(model, names)):
        of_weights = [delta for weight in row_block.weights if (delta := delta_on(weight)) is not None]
        if not of_weights:
            continue
        with gatherer.whole(*(delta.module for delta in of_weights)):
            if rank() == 0:
                deltas[i] = [_gathered(delta) for delta in of_weights]
    return deltas


def _gathered(delta: RowDelta) -> WeightDelta:
    whole = delta.whole().cpu().clone()
    if delta.factors is None:
        return WeightDelta(whole)
    a, b = delta.factors
    return WeightDelta(whole, delta.scaling * a.cpu(), b.cpu().clone())


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
