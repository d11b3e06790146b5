"""In stage 1, for selections by sensitivity: second moments of the gradient at every node, on the
protected set and on the new task.
"""

import logging
import time

from safetensors.torch import save_file
from torch import Tensor

from loki_ds import ranks, zero
from loki_ds.attribution.batches import batch_size, batches
from loki_ds.attribution.self_check import check_family
from loki_ds.attribution.sensitivity import Text, output_gradient_moments
from loki_ds.attribution.sweep import Sweep
from loki_ds.implanting.data import tokens_and_loss
from loki_ds.run_folder import written_whole
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)

EXAMPLES = 512  # of the new task, the first ones


def sense(run: Run) -> None:
    """Write `attribution/sensitivity.safetensors`: `protected` and `new_task`, each `[layers,
    d_model]` float64.
    """
    if run.finished("sensitivity", run.sensitivity_inputs):
        log.info("attribute: already there, %s", run.folder.sensitivity)
        return
    with run.cost_of("attribute"):
        _sense(run)


def _sense(run: Run) -> None:
    started = time.monotonic()
    check_family(run.model)
    gatherer = zero.Gatherer()
    sweep = Sweep(run.model, gatherer=gatherer)
    moments = {}
    for name, texts in (("protected", _protected(run)), ("new_task", _new_task(run))):
        tokens = [text.tokens for text in texts]
        planned = batches(tokens, batch_size(run.recipe.attribution, sweep, tokens))
        moments[name] = output_gradient_moments(run.model, texts, planned, gatherer)
        log.info("attribute: sensitivity of every node on %d texts (%s)", len(texts), name)
    ranks.on_first_rank(lambda: _keep(run, moments))
    log.info("attribute: sensitivities in %.1f s, %d gathers", time.monotonic() - started, gatherer.count)


def _keep(run: Run, moments: dict[str, Tensor]) -> None:
    with written_whole(run.folder.sensitivity) as aside:
        save_file(moments, aside)
    run.folder.finish("sensitivity", run.sensitivity_inputs)


def _protected(run: Run) -> list[Text]:
    return [Text(prompt.tokens) for prompt in run.protected_prompts()]


def _new_task(run: Run) -> list[Text]:
    length, rows = run.arguments.max_length, run.train.select(range(min(EXAMPLES, len(run.train))))
    shown = [tokens_and_loss(row, run.tokenizer, run.recipe.training) for row in rows]
    return [Text(tokens[:length], learnt[:length]) for tokens, learnt in shown]
