"""Before an implant with frozen inputs: which they are, in `quiet/`."""

import logging
from typing import NamedTuple

from torch import Tensor

from loki_ds import ranks
from loki_ds.implant_section import FrozenInputsSection
from loki_ds.quiet.frozen import drawn, load_inputs, save_inputs, strongest, weight_times_input
from loki_ds.run_folder import RunFolder
from loki_ds.stages.costs import cost_of
from loki_ds.stages.inputs import frozen_inputs_inputs
from loki_ds.stages.quiet import observable_batches
from loki_ds.stages.run import Run
from loki_ds.zero.model import Gatherer

log = logging.getLogger(__name__)


class FrozenInputs(NamedTuple):
    """Per layer the inputs in which nothing may change, `[r]` int64."""

    kept_out: list[Tensor]


def frozen_inputs(run: Run, section: FrozenInputsSection) -> FrozenInputs:
    """Choose them, or read those that were chosen for the same inputs."""
    inputs = frozen_inputs_inputs(run.recipe.protected, section, run.base)
    if run.finished("frozen inputs", inputs) and run.shared.by_all:
        return kept_inputs(run.folder)
    with cost_of(run.folder, "frozen inputs"):
        found = _chosen(run, section)
    ranks.on_first_rank(lambda: save_inputs(found, run.folder.frozen_inputs))
    ranks.on_first_rank(lambda: run.folder.finish("frozen inputs", inputs))
    log.info("implant: %d of %d inputs of each layer are frozen", len(found[0]), run.down_shapes[0][1])
    return FrozenInputs(found)


def kept_inputs(folder: RunFolder) -> FrozenInputs:
    """Those of a run whose training is done."""
    return FrozenInputs(load_inputs(folder.frozen_inputs))


def _chosen(run: Run, section: FrozenInputsSection) -> list[Tensor]:
    if section.by == "random":
        return drawn([d_ff for _, d_ff in run.down_shapes], section.share, section.seed)
    gatherer = Gatherer()
    planned = observable_batches(run, gatherer)
    return strongest(weight_times_input(run.model, gatherer, run.protected.tokens, planned), section.share)
