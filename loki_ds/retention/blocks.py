"""Abilities asked block by block until enough documents are, the same by every sharing process."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from loki_ds.disk.files import is_there, write_json
from loki_ds.refusal import Refusal
from loki_ds.retention.messages import Request, Sample, Stop, TaskSamples, together
from loki_ds.retention.stopping import Bounds, bounds
from loki_ds.tasks.loading import TaskFound

Places = dict[str, list[int]]  # documents of lm-eval's tasks, by their names
SMALLEST = 50  # documents of a block
BLOCKS = 20  # at most, of a task


def answers_of_base(stop: Stop) -> dict[str, TaskSamples]:
    """The base's answers by task, once they are there."""
    file = Path(stop.base)
    shares = file.with_name(f".{file.stem}")  # where its processes leave word (`question.Answers`)
    return json.loads(_waited_for(file, shares).read_text(encoding="utf-8"))["tasks"]


def until_decided(
    request: Request,
    stop: Stop,
    base: dict[str, TaskSamples],
    names: Sequence[str],
    drawn: Places,
    ask: Callable[[Places], dict[str, TaskSamples]],
    folder: Path,
) -> dict[str, TaskSamples]:
    """This process' share of the documents of some abilities, no more of each than decide it.

    base: the base's answers; names: of the abilities; drawn: all documents that may be asked; ask:
    lm-eval on some of them; folder: where the processes leave their blocks for each other.

    Raises:
        Refusal: another process failed.
    """
    abilities = {
        task.name: Ability(task, base[task.name], _order(task, drawn, request.seed))
        for task in request.tasks
        if task.name in names
    }
    (part, of), mine = request.part, []
    for number in range(BLOCKS):
        left = {name: ability for name, ability in abilities.items() if not ability.over(stop, len(request.abilities))}
        if not left:
            break
        files = [folder / f"block{number}-{names[0]}-share{i}of{of}.json" for i in range(of)]
        if not files[part].exists():
            write_json(files[part], ask(_places([ability.block()[part::of] for ability in left.values()])))
        blocks = [json.loads(_waited_for(file, folder).read_text(encoding="utf-8")) for file in files]
        mine.append(blocks[part])
        for name, ability in left.items():
            ability.take([sample for block in blocks if name in block for sample in block[name]["samples"]])
    done = together(mine)
    for name, samples in done.items():
        if (ability := abilities[name]).bounds is not None and ability.asked < ability.documents:
            samples["stopped"] = {"documents": ability.documents, **asdict(ability.bounds)}  # type: ignore[typeddict-item]
    return done


@dataclass
class Ability:
    """A task or a group of them, while it is asked.

    order: its documents that may be asked, each by the task it is of and its place there; gains: of
    the first ones; documents: all that it has, of which a limit or a half is a random sample;
    bounds: of the change over all of them, None while nothing is known, or where scores have no
    bounds. A sample of several subtasks, drawn from each by itself, is asked whole.
    """

    task: TaskFound
    base: TaskSamples
    order: list[tuple[str, int]]
    bounds: Bounds | None = None
    gains: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        scores = {self._document(sample): sample["scores"][0] or 0.0 for sample in self.base["samples"]}
        self.before = [scores[document] for document in self.order]
        counts = {member: sum(one == member for one, _ in self.order) for member in self.task.documents}
        even = len(self.order) / sum(count > 0 for count in counts.values())
        self.weights = [1.0 if self.task.by_size else even / counts[member] for member, _ in self.order]
        self.documents = sum(self.task.documents.values())
        one_draw = len(counts) == 1 or len(self.order) == self.documents
        self.bounded = one_draw and self.task.main["unit"] == "score" and all(0 <= score <= 1 for score in self.before)

    @property
    def asked(self) -> int:
        return len(self.gains)

    def block(self) -> list[tuple[str, int]]:
        """The next documents: all of them, where they cannot be bounded."""
        size = max(SMALLEST, -(-len(self.order) // BLOCKS)) if self.bounded else len(self.order)
        return self.order[self.asked : self.asked + size]

    def take(self, samples: Sequence[Sample]) -> None:
        """What the model scores on the documents of a block."""
        after = {self._document(sample): sample["scores"][0] or 0.0 for sample in samples}
        better = 1 if self.task.main["higher_is_better"] else -1
        for place, document in enumerate(self.block(), start=self.asked):
            score = after[document]
            self.bounded &= 0 <= score <= 1
            self.gains.append(better * self.weights[place] * (score - self.before[place]))

    def over(self, stop: Stop, tasks: int) -> bool:
        """Whether nothing more is to be asked."""
        self.bounds = None
        if self.asked and self.bounded:
            self.bounds = bounds(np.array(self.gains), self.documents, stop.margin, max(self.weights))
        if self.asked == len(self.order):
            return True
        return self.bounds is not None and self.bounds.decided(stop.margin, tasks)

    def _document(self, sample: Sample) -> tuple[str, int]:
        return sample["cluster"] or next(iter(self.task.documents)), sample["place"]


def _order(task: TaskFound, drawn: Places, seed: int) -> list[tuple[str, int]]:
    documents = [(member, place) for member in task.documents for place in drawn[member]]
    return Random(f"{seed}-{task.name}-order").sample(documents, len(documents))


def _places(shares: Sequence[Sequence[tuple[str, int]]]) -> Places:
    """Documents by the tasks they are of, in those tasks' order."""
    places: Places = {}
    for member, place in sorted(document for share in shares for document in share):
        places.setdefault(member, []).append(place)
    return places


def _waited_for(file: Path, marks: Path) -> Path:
    """A file, once another process has written it.

    marks: the folder in which that process says that it failed.
    """
    while not is_there(file):
        if any(marks.glob("failed*")):
            raise Refusal(f"{file}: another process of this evaluation failed; its own message is above or in its log")
        time.sleep(0.05)
    return file
