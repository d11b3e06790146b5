"""Before anything trains: what the base answers to the retention tasks.

The answers are kept for the report, so they cost nothing more. A task of which the base can do
nothing is seen here, and not after the training.
"""

import logging
import time

from loki_ds.distributed import device, ranks
from loki_ds.recipe.sections import RetentionSection
from loki_ds.refusal import Refusal
from loki_ds.retention.evaluation import evaluate, unanswered
from loki_ds.retention.messages import ArmResult, Half, TaskSamples
from loki_ds.retention.question import Answers, Asked
from loki_ds.stages.check import Checked
from loki_ds.stages.questions import Arms, answers_of_run, node_of_rank
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)
SHOWN = 120  # characters of a prompt or an answer in a sentence


def ask_base(run: Run, checked: Checked) -> None:
    """Have the base answer what is not answered yet. All ranks call it; the first of every node
    evaluates, where all see the run folder, and the others wait.

    Raises:
        Refusal: the base scores 0 on every ability.
    """
    if ranks.on_first_rank(lambda: run.folder.has("implant")):
        return  # it is asked beside the model, in one start
    halves: list[Half | None] = ["choosing", "confirming"] if run.recipe.tune else [None]

    def of_base() -> list[Asked]:
        base = Arms(checked, run.folder).base
        return [run.question(half).of_base(base) for half in halves]

    asked, answers = ranks.on_first_rank(of_base), answers_of_run(run.folder)
    have_base_answer(run, asked, answers, "base")
    ranks.on_first_rank(lambda: _look_at(answers.read(asked[0].key), run.recipe.retention))


def have_base_answer(run: Run, asked: list[Asked], answers: Answers, stage: str) -> None:
    """Evaluate what is not answered yet; all ranks call it. stage: whose costs these are."""
    left = ranks.on_first_rank(lambda: unanswered(asked, answers))
    nodes = node_of_rank(run.recipe.retention, run.shared)
    if left and nodes is not None:
        started = time.monotonic()
        evaluate(left, answers, nodes)
        if nodes.this == 0:
            seconds = round(time.monotonic() - started, 1)
            run.folder.note_cost(stage, {"seconds": seconds, "device": device.name()})
    ranks.barrier()


def _look_at(result: ArmResult, section: RetentionSection) -> None:
    """Name abilities on which the base scores 0, each by a document: what is asked, right, said."""
    names = [name for group in section.abilities for name in group.tasks]
    dead = [name for name in names if _scores_nothing(result["tasks"][name])]
    for name in dead:
        said = _shown(name, result["tasks"][name])
        if len(dead) == len(names):
            raise Refusal(f"retention.abilities: the base scores 0 on all of them, so there is nothing to lose; {said}")
        log.warning("retain: %s", said)


def _scores_nothing(task: TaskSamples) -> bool:
    main = task["metrics"][0]
    return main["unit"] == "score" and main["higher_is_better"] and not any(s["scores"][0] for s in task["samples"])


def _shown(name: str, task: TaskSamples) -> str:
    first = task["samples"][0]
    asked, right, said = (_end_of(first[key]) for key in ("prompt", "gold", "answer"))
    return (
        f"task {name}: the base scores 0 on all {len(task['samples'])} documents; asked {asked}, where {right} is "
        f"right, it says {said}; is a filter missing, or a template?"
    )


def _end_of(text: str) -> str:
    """With its white space, by which an answer may be wrong."""
    return repr(text if len(text) <= SHOWN else f"...{text[-SHOWN:]}")
