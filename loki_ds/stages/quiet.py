"""Before a quiet implant: the second moments of what every `W_down` receives on the protected
prompts, in `quiet/`.
"""

import hashlib
import json
import logging
from typing import Any, NamedTuple

from loki_ds import device, ranks, zero
from loki_ds.attribution.batches import batch_size, batches
from loki_ds.attribution.self_check import check_family
from loki_ds.attribution.sweep import Sweep
from loki_ds.quiet.moments import collect_moments, load_moments, save_moments, sketch_width
from loki_ds.quiet.subspace import SecondMoment, Subspace, protected_subspace
from loki_ds.recipe import QuietSection
from loki_ds.run_folder import remove
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)

FREE_SHARE = 0.5  # of the host's free memory that the matrices may take on each rank


class Quiet(NamedTuple):
    """Per layer, the second moment of its inputs and the protected subspace."""

    moments: list[SecondMoment]
    subspaces: list[Subspace]


def quiet(run: Run, section: QuietSection) -> Quiet:
    """Collect the moments, or read those that are there for the same inputs, and take the
    directions of the recipe's energy.
    """
    path, inputs = run.folder.quiet / "moments.safetensors", run.quiet_inputs
    if run.finished("quiet", inputs) and run.folder_is_shared:
        moments = load_moments(path)
    else:
        with run.cost_of("quiet"):
            moments = _collect(run, section)
        ranks.on_first_rank(lambda: save_moments(moments, path))
        ranks.on_first_rank(lambda: run.folder.finish("quiet", inputs))
        ranks.on_first_rank(lambda: remove(run.folder.quiet / "partial"))
    subspaces = [protected_subspace(moment, section.energy) for moment in moments]
    room = ", ".join(f"{100 * subspace.room:.0f}" for subspace in subspaces)
    log.info("quiet: room left at energy %g, percent of each layer's inputs: %s", section.energy, room)
    return Quiet(moments, subspaces)


def _collect(run: Run, section: QuietSection) -> list[SecondMoment]:
    prompts = [prompt.tokens for prompt in run.protected_prompts()]
    check_family(run.model)
    sweep = Sweep(run.model, gatherer=zero.Gatherer())
    size = batch_size(run.recipe.attribution, sweep, prompts)
    budget = min(ranks.from_all_ranks(int(FREE_SHARE * device.available_host_memory())))
    width = sketch_width(sweep.input_sizes(), budget, section.sketch)
    planned = batches(prompts, size)
    return collect_moments(
        sweep, prompts, planned, width, run.folder.quiet / "partial" / _digest(run.quiet_inputs, planned, width)
    )


def _digest(*parts: Any) -> str:
    """Sums are gone on from only for the same prompts in the same batches."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
