"""In stage 1, for selections by sensitivity: second moments of the gradient at every node, on the
protected set and on the new task.
"""

import logging
from collections.abc import Sequence

from safetensors.torch import save_file

from loki_ds import ranks
from loki_ds.attribution.sensitivity import EXAMPLES, Text, output_gradient_moments, output_gradients
from loki_ds.examples.choice import LossSettings
from loki_ds.examples.rendering import NOT_LEARNT
from loki_ds.run_folder import written_whole
from loki_ds.stages.batch_size import measured_batches
from loki_ds.stages.costs import cost_of
from loki_ds.stages.inputs import sensitivity_inputs
from loki_ds.stages.run import Run
from loki_ds.zero.model import Gatherer

log = logging.getLogger(__name__)


def sensitivity(run: Run) -> None:
    """Write `attribution/sensitivity.safetensors`: `protected` and `new_task`, each
    `[layers, d_model]` float64.
    """
    inputs = sensitivity_inputs(run.recipe, run.base)
    run.once("sensitivity", inputs, run.folder.sensitivity, lambda: _collect(run))


def _collect(run: Run) -> None:
    with cost_of(run.folder, "sensitivity"):
        gatherer = Gatherer()

        def gradients(prompts: Sequence[Sequence[int]]) -> None:
            for _ in output_gradients(run.model, gatherer, [Text(list(prompt)) for prompt in prompts]):
                pass

        moments = {}
        for name, texts in (("protected", _protected(run)), ("new_task", _new_task(run))):
            tokens = [text.tokens for text in texts]
            planned = measured_batches(run.recipe.attribution, gradients, tokens, run.model.config, "sensitivity")
            moments[name] = output_gradient_moments(run.model, texts, planned, gatherer)
            log.info("sensitivity: of every node on %d texts (%s)", len(texts), name)
        log.info("sensitivity: %d gathers", gatherer.count)
    if ranks.rank() == 0:
        with written_whole(run.folder.sensitivity) as aside:
            save_file(moments, aside)


def _protected(run: Run) -> list[Text]:
    return [Text(tokens) for tokens in run.protected.tokens]


def _new_task(run: Run) -> list[Text]:
    """As they are learnt: of each the part that the cut leaves."""
    cut = LossSettings.of(run.recipe.training).cut
    rows = run.checked.examples.select(range(min(EXAMPLES, len(run.checked.examples))))
    return [
        Text(cut.of(row["input_ids"]), [int(label != NOT_LEARNT) for label in cut.of(row["labels"])]) for row in rows
    ]
