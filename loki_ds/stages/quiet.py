"""Before a quiet implant: the second moments of what every `W_down` receives on the protected
prompts, in `quiet/`.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from loki_ds.attribution.batches import measured_batches
from loki_ds.distributed import device, ranks
from loki_ds.distributed.zero.model import Gatherer
from loki_ds.export.implant_file import Implant
from loki_ds.export.products import changes_of
from loki_ds.quiet.kept import load_moments, save_moments
from loki_ds.quiet.moments import collect_moments, input_sizes, observe_inputs, sketch_width
from loki_ds.quiet.subspace import SecondMoment, Subspace, certify, protected_subspace, strongest
from loki_ds.recipe.implant import QuietSection
from loki_ds.stages.check import Checked
from loki_ds.stages.costs import cost_of
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
    def protected_bases(self) -> list[Tensor]:
        """Per layer the basis `[d_ff, r]` that the delta keeps out of."""
        return [subspace.basis for subspace in self.subspaces]

    def certificate(self, implant: Implant, base: Path) -> dict[str, Any]:
        """What protected inputs can feel of an implant as exported. base: the base's folder."""
        layers = certify(*changes_of(implant, base), self.moments, self.subspaces)
        worst = strongest(layers)
        log.info(
            "quiet: protected inputs feel at most %.2g of a layer's mean square output (layer %d; bound %.2g)",
            worst["change"],
            worst["layer"],
            worst["bound"],
        )
        return {"energy": self.energy, "layers": layers}


def quiet(run: Run, checked: Checked, section: QuietSection) -> Quiet:
    """Collect the moments, or read those that are there for the same inputs, and take the
    directions of the recipe's energy.
    """
    file = run.folder.moments
    moments = run.once(
        "quiet",
        checked.fingerprints.quiet(section.sketch),
        make=lambda: _collect(run, checked, section),
        save=lambda moments: save_moments(moments, file),
        load=lambda: load_moments(file),
    )
    quieted = Quiet.of(moments, section)
    left = ", ".join(f"{100 * subspace.free_directions:.0f}" for subspace in quieted.subspaces)
    log.info("quiet: directions left free at energy %g, percent of each layer's inputs: %s", section.energy, left)
    return quieted


def _collect(run: Run, checked: Checked, section: QuietSection) -> list[SecondMoment]:
    model, tokens, gatherer = run.model(checked.base), checked.protected.tokens, Gatherer()

    def observed(prompts: Sequence[Sequence[int]]) -> None:
        observe_inputs(model, gatherer, prompts, lambda *_: None)

    with cost_of(run.folder, "quiet"):
        planned = measured_batches(run.recipe.attribution, observed, tokens, model.config, "quiet")
        budget = min(ranks.all_gather(int(FREE_SHARE * device.available_host_memory())))
        width = sketch_width(input_sizes(model), budget, section.sketch)
        return collect_moments(model, gatherer, tokens, planned, width)
