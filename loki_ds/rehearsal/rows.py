"""Rehearsed examples: texts whose labels point to the base's answers, mixed into the new task's.

A label below -100 is no token but a place among the answers. So it goes wherever labels go: it is
packed, padded, cut and counted as a token that is learnt, and weighs as much.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from random import Random
from typing import Literal

import pyarrow as pa
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from loki_ds.examples.rendering import NOT_LEARNT, Rendered
from loki_ds.examples.whole import SCHEMA
from loki_ds.rehearsal.answers import predictions
from loki_ds.rehearsal.divergence import Answers

HELD_OUT = 10  # one text in so many is never trained on
MOST_HELD_OUT, MEASURED_ALONE = 64, 16  # texts, and of them where nothing is rehearsed
LOOKED_AT = 1000  # examples, for their prompts
FIRST = NOT_LEARNT - 1  # the label of the answer at place 0


def is_pointer(labels: Tensor) -> Tensor:
    return labels <= FIRST


def places_of(pointers: Tensor) -> Tensor:
    return FIRST - pointers


def rehearsed(texts: Sequence[Sequence[int]], answers: Answers, loss: Literal["kl", "ce"]) -> list[Rendered]:
    """Each text and the base's likeliest token after it.

    loss: `kl` learns the base's predictions, `ce` the tokens themselves.
    """
    found, place = [], 0
    for text in texts:
        count = predictions(text)
        ids = [*text, int(answers.ids[place + count - 1, 0])]
        pointers = [FIRST - (place + i) for i in range(count)]
        learnt = pointers if loss == "kl" else ids[-count:]
        found.append(Rendered(ids, [NOT_LEARNT] * (len(ids) - count) + learnt))
        place += count
    return found


def as_dataset(examples: Sequence[Rendered]) -> Dataset:
    """In the shape of the new task's."""
    columns = {"input_ids": [one.input_ids for one in examples], "labels": [one.labels for one in examples]}
    return Dataset(pa.table(columns, schema=SCHEMA))


def count_for(examples: int, share: float) -> int:
    """How many rehearsed examples make up a share of all; of none that is not 0 at least one."""
    return max(1, round(examples * share / (1 - share))) if share else 0


def most_held_out(share: float) -> int:
    """Texts whose drift is measured at most; of the new task's prompts as many."""
    return MOST_HELD_OUT if share else MEASURED_ALONE


def prompts_of(examples: Iterable[dict[str, list[int]]], count: int) -> list[list[int]]:
    """What stands before the first token that is learnt, of so many examples.

    Looks at the first thousand: where all is learnt nothing stands before it.
    """
    starts = (
        one["input_ids"][: next((i for i, label in enumerate(one["labels"]) if label != NOT_LEARNT), 0)]
        for one in islice(examples, LOOKED_AT)
    )
    return list(islice((start for start in starts if start), count))


def mixed_in(examples: Dataset, others: Sequence[Rendered], share: float, seed: int) -> Dataset:
    """The new task's examples with as many others among them as make up a share, spread evenly.

    Drawn by seed, none twice before all are in.
    """
    count = count_for(len(examples), share)
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += Random(f"{seed}-{len(drawn)}").sample(range(len(others)), len(others))
    places = [(float(i), i) for i in range(len(examples))]
    places += [((k + 0.5) * len(examples) / count, len(examples) + other) for k, other in enumerate(drawn[:count])]
    both = concatenate_datasets([examples, as_dataset(others)])
    return both.select([row for _, row in sorted(places)])
