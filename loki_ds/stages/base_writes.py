"""Before the model is loaded to train: what the base writes, to be rehearsed. Its answers to
counter-examples, or questions and answers of its own, in `rehearsal/written.json`.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from loki_ds.checking.findings import Findings
from loki_ds.data.dataset import examples_of
from loki_ds.data.sources import places_of
from loki_ds.data.templates import STAND_IN, ChatTemplate
from loki_ds.disk.files import write_json
from loki_ds.distributed import ranks
from loki_ds.implanting.boundary import MOST_ROWS, Boundary, CounterExample, Form, counter_examples
from loki_ds.implanting.exchanges import Exchange, exchanges_of, ids_of
from loki_ds.implanting.rehearsal_rows import HELD_OUT, count_for
from loki_ds.implanting.trl_config import TrainingShape, examples_per_step
from loki_ds.model.base import UNRENDERABLE, max_tokens
from loki_ds.recipe.implant import RehearseSection
from loki_ds.refusal import Refusal
from loki_ds.stages.base_says import base_says
from loki_ds.stages.check import Checked
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)
MOST = 4_000  # texts, whatever a training sees: each is written token by token
LEAST = 32  # texts, so that a short run sees more than a few
SPARE = 1.5  # times as many are asked as are wanted: some answers teach nothing
QUESTION_TOKENS = 64  # of a question that the base writes
SHOWN = 3  # counter-examples of a kind


def base_writes(run: Run, checked: Checked) -> None:
    """Have the base write what the recipe rehearses of it, if anything. All ranks call it.

    Raises:
        Refusal: nothing of a kind is left, or the tokenizer has no chat template.
    """
    writing = Writing.of(run, checked)
    if writing is None or ranks.on_first_rank(lambda: run.folder.has("implant")):
        return
    run.once(
        "base_writes",
        checked.fingerprints.written(checked.rendering.template if checked.rendering else None),
        make=writing.exchanges,
        save=lambda exchanges: write_json(run.folder.written, exchanges),
    )


@dataclass(frozen=True)
class Writing:
    """What the base is to write for a recipe that rehearses it."""

    run: Run
    checked: Checked
    section: RehearseSection

    @classmethod
    def of(cls, run: Run, checked: Checked) -> "Writing | None":
        """None where the recipe rehearses nothing that the base writes."""
        section = run.recipe.implant.rehearse
        return None if section is None or section.given == list(section.prompts) else cls(run, checked, section)

    @property
    def template(self) -> ChatTemplate:
        """What the base is asked by.

        Raises:
            Refusal: the base has none.
        """
        template = self.checked.rendering.renderer.template if self.checked.rendering else None
        if template is None:
            raise Refusal(
                "implant.rehearse.prompts: base and boundary are what the base says in a chat, and it has no chat "
                "template; rehearse texts of a file"
            )
        return template

    @property
    def boundary(self) -> Boundary:
        """The counter-examples of the recipe's rows, before the base answers; made once. Rank 0's
        work.

        Raises:
            Refusal: no row gives one.
        """
        if "boundary" not in self.section.prompts:
            return Boundary()
        if self.checked.boundary is None:
            sources, kinds = self.run.recipe.data.train, self.section.boundary.kinds
            rows = (
                (place(number), example)
                for source, place in zip(sources, map(places_of, sources), strict=True)
                for number, example in islice(examples_of(source), MOST_ROWS // len(sources))
            )
            self.checked.boundary = counter_examples(rows, self.wanted["boundary"], kinds, self.checked.arguments.seed)
        made = self.checked.boundary
        if not made.made:
            raise Refusal(f"implant.rehearse.prompts.boundary: no row gives a counter-example; {made.said()}")
        return made

    @property
    def wanted(self) -> dict[str, int]:
        """How many prompts the base is given of each kind that it writes: as many as the training
        sees, those that are held out, and some to spare.
        """
        arguments, examples, section = self.checked.arguments, len(self.checked.examples), self.section
        if not arguments.packing:
            training, dtype = self.run.recipe.training, self.run.recipe.model.dtype
            steps = TrainingShape.of(training, dtype).steps(training, examples, ranks.world_size())
            examples = min(examples, round(steps * examples_per_step(arguments) * (1 - section.share)))
        counts = {name: count_for(examples, section.prompts[name], section.share) for name in section.prompts}
        return {
            name: min(MOST, round(max(LEAST, count * HELD_OUT / (HELD_OUT - 1)) * SPARE))
            for name, count in counts.items()
            if name not in section.given
        }

    def exchanges(self) -> list[Exchange]:
        """Prompts, and what the base answers; on all ranks the same."""
        boundary = ranks.on_first_rank(lambda: self.boundary)
        questions = self._questions(len(boundary.of("foreign")) + self.wanted.get("base", 0))
        exchanges = ranks.on_first_rank(lambda: self._prompts(boundary, questions))
        asked = [exchange for exchange in exchanges if exchange["left_out"] is None]
        prompts = [exchange["prompt"] for exchange in asked]
        answers = base_says(self.run, self.checked, "answers", prompts, self.section.most_tokens)
        for exchange, answer in zip(asked, answers, strict=True):
            exchange["answer"], exchange["left_out"] = answer, _complaint(exchange, answer, boundary.form)
        for name in self.wanted:
            ranks.on_first_rank(partial(_look_at, name, exchanges))
        return exchanges

    def findings(self) -> Findings:
        """What is made of the rows before a base is asked; on all ranks the same."""
        ranks.on_first_rank(lambda: self.template)
        if "boundary" not in self.section.prompts:
            return []
        return [("counter-examples", ranks.on_first_rank(lambda: self.boundary.said()))]

    def shown(self) -> list[str]:
        """Some counter-examples of each kind in full."""
        return [
            f"--- {kind}, made from {example.place}\n{self._prompt(example)}"
            for kind in self.section.boundary.kinds
            for example in self.boundary.of(kind)[:SHOWN]
        ]

    def _questions(self, count: int) -> list[str]:
        """Questions that the base writes in the user's place, each once; at most `count`."""
        if not count:
            return []
        opening = ranks.on_first_rank(lambda: _opening(self.template, self.run.recipe.retention.chat_template_args))
        sampled = base_says(self.run, self.checked, "questions", [opening] * count, QUESTION_TOKENS, temperature=1.0)
        return [question for question in dict.fromkeys(text.strip() for text in sampled) if question]

    def _prompts(self, boundary: Boundary, questions: Sequence[str]) -> list[Exchange]:
        """All that the base is to answer: foreign questions are the first that it wrote, those in
        no context the others.
        """
        foreign = boundary.of("foreign")
        examples = [(example.kind, example) for example in boundary.made if example.kind != "foreign"]
        asking = [example.asking(question) for example, question in zip(foreign, questions, strict=False)]
        turns = [{"role": "user", "content": question} for question in questions[len(foreign) :]]
        alone = [CounterExample("bare", "", [turn], []) for turn in turns]
        kinds: list[tuple[str, CounterExample]] = [
            *examples, *(("foreign", example) for example in asking), *(("base", example) for example in alone)
        ]  # fmt: skip
        return [self._unanswered(kind, example) for kind, example in kinds]

    def _unanswered(self, kind: str, example: CounterExample) -> Exchange:
        """A prompt, which is left out where the template refuses it or an answer has no room."""
        prompt, left_out = self._prompt(example), None
        longest = [max_tokens(self.checked.config), self.checked.arguments.max_length]
        room = min((most for most in longest if most is not None), default=None)
        if not prompt:
            left_out = "the template refuses it"
        elif room is not None and len(ids_of(prompt, self.checked.tokenizer)) >= room - self.section.most_tokens:
            left_out = "with its answer longer than training.max_length or the model's context"
        return Exchange(
            kind=kind, place=example.place, question=example.question, prompt=prompt, answer="", left_out=left_out
        )

    def _prompt(self, example: CounterExample) -> str:
        """As the base reads it; empty where the template refuses it."""
        arguments = self.run.recipe.retention.chat_template_args
        try:
            return self.template.render(example.messages, example.tools, add_generation_prompt=True, **arguments)
        except UNRENDERABLE:
            return ""


def _look_at(name: str, exchanges: Sequence[Exchange]) -> None:
    """Say how many answers are left of one of the prompts, and what others lack."""
    of_name = exchanges_of(name, exchanges)
    left_out = Counter(exchange["left_out"] for exchange in of_name if exchange["left_out"])
    reasons = "; ".join(f"{count:,} {why}" for why, count in left_out.most_common()) or "none is left out"
    count, left = len(of_name), len(of_name) - left_out.total()
    if not left:
        raise Refusal(
            f"implant.rehearse.prompts.{name}: of {count:,} answers of the base none is left to rehearse: {reasons}"
        )
    log.info("rehearse: %s: %d of %d answers of the base are left; %s", name, left, count, reasons)


def _complaint(exchange: Exchange, answer: str, form: Form) -> str | None:
    """Why an answer teaches nothing, if it does not; its own questions the base may answer in any
    form.
    """
    return (Form() if exchange["kind"] == "base" else form).complaint(answer, exchange["question"])


def _opening(template: ChatTemplate, arguments: dict[str, Any]) -> str:
    """What stands before a user's first words."""
    return template.render([{"role": "user", "content": STAND_IN}], **arguments).partition(STAND_IN)[0]
