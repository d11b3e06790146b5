"""Before a quiet implant: the second moments of what every `W_down` receives on the protected
prompts, in `quiet/`.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from loki_ds.attribution.batches import measured_batches
from loki_ds.distributed import device, ranks
from loki_ds.distributed.zero.model import Gatherer
from loki_ds.quiet.kept import load_moments, save_moments
from loki_ds.quiet.moments import collect_moments, input_sizes, observe_inputs, sketch_width
from loki_ds.quiet.subspace import SecondMoment, Subspace, protected_subspace
from loki_ds.recipe.implant import QuietSection
from loki_ds.stages.costs import cost_of
from loki_ds.stages.fingerprints import quiet_inputs
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)

FREE_SHARE = 0.5  # of the host's free memory that the matrices may take on each rank


class Quiet(NamedTuple):
    """Per layer, the second moment of its inputs and the subspace that holds a share `energy` of
    it.
    """

    moments: list[SecondMoment]
    subspaces: list[Subspace]
    energy: float

    @classmethod
    def of(cls, moments: list[SecondMoment], section: QuietSection) -> "Quiet":
        subspaces = [protected_subspace(moment, section.energy) for moment in moments]
        return cls(moments, subspaces, section.energy)

    @property
    def kept_out(self) -> list[Tensor]:
        """Per layer the basis `[d_ff, r]` that the delta keeps out of."""
        return [subspace.basis for subspace in self.subspaces]


def quiet(run: Run, section: QuietSection) -> Quiet:
    """Collect the moments, or read those that are there for the same inputs, and take the
    directions of the recipe's energy.
    """
    path, inputs = (
        run.folder.quiet / "moments.safetensors",
        quiet_inputs(run.recipe.protected, section, run.base),
    )
    if run.finished("quiet", inputs) and run.shared.by_all:
        moments = load_moments(path)
    else:
        with cost_of(run.folder, "quiet"):
            moments = _collect(run, section)
        ranks.on_first_rank(lambda: save_moments(moments, path))
        ranks.on_first_rank(lambda: run.folder.finish("quiet", inputs))
    found = Quiet.of(moments, section)
    room = ", ".join(f"{100 * subspace.room:.0f}" for subspace in found.subspaces)
    log.info("quiet: room left at energy %g, percent of each layer's inputs: %s", section.energy, room)
    return found


def _collect(run: Run, section: QuietSection) -> list[SecondMoment]:
    tokens, gatherer = run.protected.tokens, Gatherer()
    planned = observable_batches(run, gatherer)
    budget = min(ranks.all_gather(int(FREE_SHARE * device.available_host_memory())))
    width = sketch_width(input_sizes(run.model), budget, section.sketch)
    return collect_moments(run.model, gatherer, tokens, planned, width)


def observable_batches(run: Run, gatherer: Gatherer) -> list[list[int]]:
    """Batches of the protected prompts whose inputs to every `W_down` are to be observed."""

    def observed(prompts: Sequence[Sequence[int]]) -> None:
        observe_inputs(run.model, gatherer, prompts, lambda *_: None)

    return measured_batches(run.recipe.attribution, observed, run.protected.tokens, run.model.config, "quiet")
