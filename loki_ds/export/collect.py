"""From the trained model on the ranks to files on rank 0: a gathered checkpoint, or only the
deltas.

All functions are called on every rank; what they return is for rank 0.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module
from trl import SFTTrainer

from loki_ds.attribution.anatomy import decoder_layers, down_projection
from loki_ds.implanting.rows import RowLinear
from loki_ds.ranks import barrier, rank
from loki_ds.run_folder import aside_of, put_in_place, remove
from loki_ds.zero import Gatherer


@dataclass(frozen=True)
class TrainedDelta:
    """One layer's trained delta on the CPU: `delta [k, d_ff]`, and in `lora` mode its factors
    (scaling in `a`).
    """

    delta: Tensor
    a: Tensor | None = None
    b: Tensor | None = None


@torch.no_grad()
def collect_deltas(model: Module) -> dict[int, TrainedDelta]:
    """Gather the deltas layer by layer; on ranks other than the first the result is empty."""
    found: dict[int, TrainedDelta] = {}
    gatherer = Gatherer()
    for i, layer in enumerate(decoder_layers(model)):
        module = down_projection(layer)
        if not isinstance(module, RowLinear):
            continue
        with gatherer.whole(module):
            if rank() == 0:
                factors = (
                    (module.scaling * module.delta_a.cpu(), module.right_factor().cpu().clone())
                    if hasattr(module, "delta_a")
                    else (None, None)
                )
                found[i] = TrainedDelta(module.whole_delta().cpu().clone(), *factors)
    return found


def save_gathered(trainer: SFTTrainer, folder: Path) -> None:
    """Gather what trained and write it as transformers or PEFT would; rank 0 writes."""
    aside = aside_of(folder)
    if rank() == 0:
        remove(aside)
    barrier()
    trainer.save_model(str(aside))
    if rank() == 0:
        (aside / "training_args.bin").unlink(missing_ok=True)  # a pickle, and no part of the model
        put_in_place(folder)
    barrier()
