"""Before the model is loaded to train: what the base writes, to be rehearsed. Its answers to
counter-examples, or questions and answers of its own, by the processes that evaluate, in
`rehearsal/written.json`.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import yaml

from loki_ds.checking.findings import Findings
from loki_ds.data.dataset import examples_of
from loki_ds.data.sources import place_of
from loki_ds.data.templates import STAND_IN, ChatTemplate
from loki_ds.disk.files import write_json
from loki_ds.distributed import ranks
from loki_ds.implanting.boundary import MOST_ROWS, Boundary, CounterExample, Form, counter_examples
from loki_ds.implanting.rehearsal_rows import HELD_OUT, Text, count_for
from loki_ds.implanting.trl_config import TrainingShape, examples_per_step
from loki_ds.model.base import UNRENDERABLE, max_tokens
from loki_ds.recipe.implant import RehearseSection
from loki_ds.recipe.sections import Recipe, TaskGroup
from loki_ds.refusal import Refusal
from loki_ds.retention.question import Answers, Asked, Question, tasks_of
from loki_ds.stages.ask_base import have_base_answer
from loki_ds.stages.check import Checked
from loki_ds.stages.questions import Arms
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)
MOST = 4_000  # texts, whatever a training sees: each is written token by token
LEAST = 32  # texts, so that a short run sees more than a few
SPARE = 1.5  # times as many are asked as are wanted: some answers teach nothing
QUESTION_TOKENS = 64  # of a question that the base writes
TASK = "base_writes"  # the name of what lm-eval is given
SHOWN = 3  # counter-examples of a kind


class Written(TypedDict):
    """A prompt, what the base answers, and why that is left out, if it is.

    kind: of a counter-example, or `base`; place: of the row that it is made from.
    """

    kind: str
    place: str
    question: str
    prompt: str
    answer: str
    left_out: str | None


def base_writes(run: Run, checked: Checked) -> None:
    """Have the base write what the recipe rehearses of it, if anything. All ranks call it.

    Raises:
        Refusal: nothing of a kind is left, or the tokenizer has no chat template.
    """
    section = run.recipe.implant.rehearse
    if (
        section is None
        or section.given == list(section.prompts)
        or ranks.on_first_rank(lambda: run.folder.has("implant"))
    ):
        return
    run.once(
        "base_writes",
        checked.fingerprints.written(checked.rendering.template if checked.rendering else None),
        make=lambda: _write(run, checked, section),
        save=lambda written: write_json(run.folder.written, written),
    )


def read_written(run: Run, checked: Checked, name: str) -> list[Text]:
    """What the base wrote for one of the prompts, as texts; on all ranks. name: `base` or
    `boundary`.
    """
    written: list[Written] = ranks.on_first_rank(lambda: json.loads(run.folder.written.read_text(encoding="utf-8")))
    kept = [one for one in _of(name, written) if one["left_out"] is None]
    return [Text.answered(_ids(checked, one["prompt"]), _ids(checked, one["answer"])) for one in kept]


def boundary_of(run: Run, checked: Checked) -> Boundary:
    """The counter-examples of the recipe's rows, before the base answers; made once. Rank 0's work.

    Raises:
        Refusal: no row gives one.
    """
    section = run.recipe.implant.rehearse
    if section is None or "boundary" not in section.prompts:
        return Boundary()
    if checked.boundary is None:
        sources, count = run.recipe.data.train, _wanted(run.recipe, checked, section)["boundary"]
        rows = (
            (place_of(source, n), example)
            for source in sources
            for n, example in islice(examples_of(source), MOST_ROWS // len(sources))
        )
        checked.boundary = counter_examples(rows, count, section.boundary.kinds, checked.arguments.seed)
    if not checked.boundary.made:
        raise Refusal(f"implant.rehearse.prompts.boundary: no row gives a counter-example; {checked.boundary.said()}")
    return checked.boundary


def check_boundary(run: Run, checked: Checked) -> Findings:
    """What is made of the rows before a base is asked; on all ranks the same."""
    section = run.recipe.implant.rehearse
    if section is not None and section.given != list(section.prompts):
        ranks.on_first_rank(lambda: _template(checked))
    if section is None or "boundary" not in section.prompts:
        return []
    return [("counter-examples", ranks.on_first_rank(lambda: boundary_of(run, checked).said()))]


def shown_counter_examples(run: Run, checked: Checked) -> list[str]:
    """Some of each kind in full, as they are put to the base."""
    boundary, section = boundary_of(run, checked), run.recipe.implant.rehearse
    shown = []
    for kind in section.boundary.kinds if section else ():
        for example in boundary.of(kind)[:SHOWN]:
            shown.append(f"--- {kind}, made from {example.place}\n{_prompt(run, checked, example)}")
    return shown


def _wanted(recipe: Recipe, checked: Checked, section: RehearseSection) -> dict[str, int]:
    """How many prompts the base is given of each kind that it writes: as many as the training sees,
    those that are held out, and some to spare.
    """
    arguments, examples = checked.arguments, len(checked.examples)
    if not arguments.packing:
        shape = TrainingShape.of(recipe.training, recipe.model.dtype)
        seen = shape.steps(recipe.training, examples, ranks.world_size()) * examples_per_step(arguments)
        examples = min(examples, round(seen * (1 - section.share)))
    counts = {name: count_for(examples, section.prompts[name], section.share) for name in section.prompts}
    return {
        name: min(MOST, round(max(LEAST, count * HELD_OUT / (HELD_OUT - 1)) * SPARE))
        for name, count in counts.items()
        if name not in section.given
    }


def _write(run: Run, checked: Checked, section: RehearseSection) -> list[Written]:
    """Prompts, and what the base answers; on all ranks the same."""
    wanted = _wanted(run.recipe, checked, section)
    boundary = ranks.on_first_rank(lambda: boundary_of(run, checked))
    questions = _questions(run, checked, len(boundary.of("foreign")) + wanted.get("base", 0))
    written = ranks.on_first_rank(lambda: _prompts(run, checked, section, boundary, questions))
    asked = [one for one in written if one["left_out"] is None]
    answers = _answers(run, checked, "answers", [one["prompt"] for one in asked], section.most_tokens)
    for one, answer in zip(asked, answers, strict=True):
        one["answer"], one["left_out"] = answer, _complaint(one, answer, boundary.form)
    for name in wanted:
        ranks.on_first_rank(partial(_look_at, name, written))
    return written


def _look_at(name: str, written: Sequence[Written]) -> None:
    """Say how many answers are left of one of the prompts, and what others lack."""
    mine = _of(name, written)
    left_out = Counter(one["left_out"] for one in mine if one["left_out"])
    reasons = "; ".join(f"{count:,} {why}" for why, count in left_out.most_common()) or "none is left out"
    left = len(mine) - left_out.total()
    if not left:
        raise Refusal(
            f"implant.rehearse.prompts.{name}: of {len(mine):,} answers of the base none is left to rehearse: {reasons}"
        )
    log.info("rehearse: %s: %d of %d answers of the base are left; %s", name, left, len(mine), reasons)


def _of(name: str, written: Sequence[Written]) -> list[Written]:
    """What was written for one of the prompts: `base`, or `boundary`, all other kinds."""
    return [one for one in written if (one["kind"] == "base") == (name == "base")]


def _questions(run: Run, checked: Checked, count: int) -> list[str]:
    """Questions that the base writes in the user's place, each once; at most `count`."""
    if not count:
        return []
    opening = ranks.on_first_rank(lambda: _opening(_template(checked), run.recipe.retention.chat_template_args))
    sampled = _answers(run, checked, "questions", [opening] * count, QUESTION_TOKENS, temperature=1.0)
    return [question for question in dict.fromkeys(text.strip() for text in sampled) if question]


def _prompts(
    run: Run, checked: Checked, section: RehearseSection, boundary: Boundary, questions: Sequence[str]
) -> list[Written]:
    """All that the base is to answer: foreign questions are the first that it wrote, those in no
    context the others.
    """
    foreign = boundary.of("foreign")
    examples: list[tuple[str, CounterExample]] = [(one.kind, one) for one in boundary.made if one.kind != "foreign"]
    examples += [("foreign", example.asking(question)) for example, question in zip(foreign, questions, strict=False)]
    own = [{"role": "user", "content": question} for question in questions[len(foreign) :]]
    asked = [*examples, *(("base", CounterExample("bare", "", [turn], [])) for turn in own)]
    longest = [most for most in (max_tokens(checked.config), checked.arguments.max_length) if most is not None]
    room = min(longest) - section.most_tokens if longest else None
    return [_unanswered(run, checked, kind, example, room) for kind, example in asked]


def _unanswered(run: Run, checked: Checked, kind: str, example: CounterExample, room: int | None) -> Written:
    """A prompt, which is left out where the template refuses it or an answer has no room."""
    prompt, left_out = _prompt(run, checked, example), None
    if not prompt:
        left_out = "the template refuses it"
    elif room is not None and len(_ids(checked, prompt)) >= room:
        left_out = "with its answer longer than training.max_length or the model's context"
    return Written(
        kind=kind, place=example.place, question=example.question, prompt=prompt, answer="", left_out=left_out
    )


def _ids(checked: Checked, text: str) -> list[int]:
    encoded: Any = checked.tokenizer(text, add_special_tokens=False)
    return encoded["input_ids"]


def _prompt(run: Run, checked: Checked, example: CounterExample) -> str:
    """As the base reads it; empty where the template refuses it."""
    arguments = run.recipe.retention.chat_template_args
    try:
        return _template(checked).render(example.messages, example.tools, add_generation_prompt=True, **arguments)
    except UNRENDERABLE:
        return ""


def _complaint(written: Written, answer: str, form: Form) -> str | None:
    """Why an answer teaches nothing, if it does not; its own questions the base may answer in any
    form.
    """
    return (Form() if written["kind"] == "base" else form).complaint(answer, written["question"])


def _template(checked: Checked) -> ChatTemplate:
    template = checked.rendering.renderer.template if checked.rendering else None
    if template is None:
        raise Refusal(
            "implant.rehearse.prompts: base and boundary are what the base says in a chat, and data.train holds no "
            "chats; rehearse texts of a file"
        )
    return template


def _opening(template: ChatTemplate, arguments: dict[str, Any]) -> str:
    """What stands before a user's first words."""
    return template.render([{"role": "user", "content": STAND_IN}], **arguments).partition(STAND_IN)[0]


def _answers(
    run: Run, checked: Checked, name: str, prompts: Sequence[str], most_tokens: int, temperature: float | None = None
) -> list[str]:
    """What the base says to each prompt, as likely as can be or drawn; on all ranks."""

    def asked_of_base() -> Asked:
        folder = run.folder.rehearsal / "tasks" / name
        _write_task(folder, prompts, most_tokens, temperature)
        group = TaskGroup(tasks=[TASK], num_fewshot=0, apply_chat_template=True)
        changes = {"abilities": [group], "new_task": None, "include_path": [str(folder)], "stop": "never"}
        section = run.recipe.retention.model_copy(update=changes)
        return Question(run.recipe.model, section, tasks_of(section)).of(Arms(checked, run.folder).base)

    if not prompts:
        return []
    asked, answers = ranks.on_first_rank(asked_of_base), Answers(run.folder.rehearsal / "answers")
    have_base_answer(run, [asked], answers, f"rehearse, {name}")
    samples = ranks.on_first_rank(lambda: answers.read(asked.key)["tasks"][TASK]["samples"])
    return [sample["answer"] for sample in samples]


def _write_task(folder: Path, prompts: Sequence[str], most_tokens: int, temperature: float | None) -> None:
    """A task of lm-eval's that puts prompts as they are written."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"do_sample": False} if temperature is None else {"do_sample": True, "temperature": temperature}
    rows = "".join(json.dumps({"prompt": prompt, "number": number}) + "\n" for number, prompt in enumerate(prompts))
    (folder / "prompts.jsonl").write_text(rows, encoding="utf-8")
    (folder / "written.py").write_text("from loki_ds.judges.as_written import AsWritten\n")
    task = f"task: {TASK}\nclass: !function written.AsWritten\n"
    settings = {
        "dataset_kwargs": {"path": str(folder.resolve() / "prompts.jsonl")},
        "generation_kwargs": {"until": [], "max_gen_toks": most_tokens, **drawn},
    }
    (folder / f"{TASK}.yaml").write_text(task + yaml.safe_dump(settings))
