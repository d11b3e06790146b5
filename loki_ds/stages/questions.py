"""What a run asks of models, and of which: the last stage's own words for question, arms and kept
answers.
"""

from dataclasses import replace
from pathlib import Path

from loki_ds.disk.files import digest_of, weights_digest
from loki_ds.retention.messages import Half
from loki_ds.retention.question import Answers, Arm, Question, model_digest
from loki_ds.stages.run import Run


def question_of(run: Run) -> Question:
    """What is asked for the report: with a dial, on the half of the documents that did not choose.

    Rank 0's work: lm-eval loads the tasks.
    """
    return _question(run, "confirming" if run.recipe.tune else None)


def choosing_question_of(run: Run) -> Question:
    """What is asked at every place of the dial."""
    return _question(run, "choosing")


def _question(run: Run, half: Half | None) -> Question:
    recipe = run.recipe.model
    return Question(run.recipe.retention, run.tasks, recipe.dtype, recipe.trust_remote_code, half)


def base_arm(run: Run) -> Arm:
    return _arm(run, run.base.folder, run.base.digest)


def model_arm(run: Run, folder: Path) -> Arm:
    """Of a model that the run made."""
    return _arm(run, folder, weights_digest(folder))


def implant_arm(run: Run, implant: Path) -> Arm:
    """Of the base with an implant's rows put into it once it is loaded."""
    arm = base_arm(run)
    return replace(arm, digest=f"{arm.digest} {digest_of(implant)}", implant=implant)


def _arm(run: Run, folder: Path, weights: str) -> Arm:
    """Where the run has a template of its own, both models read the same text by it."""
    tokenizer = run.folder.model if run.template else None
    return Arm(folder, model_digest(folder, weights), tokenizer=tokenizer, template=run.template)


def answers_in(run: Run) -> Answers:
    return Answers(run.folder.retention / "answers")


def base_answers_beside(run: Run) -> Answers:
    """The base's answers, for all runs beside this one that ask the same of the same weights."""
    return Answers(run.folder.root.parent / ".base-results")
