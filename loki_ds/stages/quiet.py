"""Before a quiet implant: the second moments of what every `W_down` receives on the protected prompts, in `quiet/`."""

import logging
from typing import NamedTuple

from torch import Tensor

from loki_ds import device, ranks, zero
from loki_ds.attribution.batches import batch_size, batches
from loki_ds.attribution.self_check import check_family
from loki_ds.attribution.sweep import Sweep
from loki_ds.protected import load_protected
from loki_ds.quiet.moments import collect_moments, load_moments, save_moments
from loki_ds.quiet.subspace import Subspace, protected_subspace
from loki_ds.recipe import QuietSection
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)

FREE_SHARE = 0.5  # of the host's free memory that the matrices may take on each rank


class Quiet(NamedTuple):
    """Per layer, the second moments `[d_ff, d_ff]` and the protected subspace."""

    moments: list[Tensor]
    subspaces: list[Subspace]


def quiet(run: Run, section: QuietSection) -> Quiet:
    """Collect the moments, or read those that are there for the same inputs, and take the directions of the recipe's energy."""
    path, inputs = run.folder.quiet / "moments.safetensors", run.quiet_inputs
    if ranks.on_first_rank(lambda: run.folder.finished("quiet", inputs)):
        moments = load_moments(path)
    else:
        with run.cost_of("quiet"):
            moments = _collect(run)
        ranks.on_first_rank(lambda: save_moments(moments, path))
        ranks.on_first_rank(lambda: run.folder.finish("quiet", inputs))
    subspaces = [protected_subspace(moment, section.energy) for moment in moments]
    room = ", ".join(f"{100 * subspace.room:.0f}" for subspace in subspaces)
    log.info("quiet: room left at energy %g, percent of each layer's inputs: %s", section.energy, room)
    return Quiet(moments, subspaces)


def _collect(run: Run) -> list[Tensor]:
    prompts = [prompt.tokens for prompt in load_protected(run.recipe.protected, run.tokenizer)]  # type: ignore[arg-type]
    check_family(run.model)
    sweep = Sweep(run.model, gatherer=zero.Gatherer())
    size = batch_size(run.recipe.attribution, sweep, prompts)
    return collect_moments(sweep, prompts, batches(prompts, size), int(FREE_SHARE * device.available_host_memory()))
