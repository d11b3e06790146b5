"""Rehearsed examples: texts whose labels point to the base's answers, mixed into the new task's.

A label below -100 is no token but a place among the answers. So it goes wherever labels go: it is
packed, padded, cut and counted as a token that is learned, and weighs as much.
"""

from collections.abc import Sequence
from random import Random

import pyarrow as pa
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from loki_ds.data.dataset import SCHEMA
from loki_ds.data.rendering import NOT_LEARNED, Rendered
from loki_ds.implanting.divergence import Answers
from loki_ds.implanting.rehearsal_answers import predictions

HELD_OUT = 10  # one text in so many is never trained on
MOST_HELD_OUT = 64  # texts
FIRST = NOT_LEARNED - 1  # the label of the answer at place 0


def is_pointer(labels: Tensor) -> Tensor:
    return labels <= FIRST


def places_of(pointers: Tensor) -> Tensor:
    return FIRST - pointers


def rehearsed(texts: Sequence[Sequence[int]], answers: Answers) -> list[Rendered]:
    """Each text and the base's likeliest token after it, with labels that point to its answers."""
    rendered, place = [], 0
    for text in texts:
        count = predictions(text)
        ids = [*text, int(answers.ids[place + count - 1, 0])]
        pointers = [FIRST - (place + i) for i in range(count)]
        rendered.append(Rendered(ids, [NOT_LEARNED] * (len(ids) - count) + pointers))
        place += count
    return rendered


def as_dataset(examples: Sequence[Rendered]) -> Dataset:
    """The rehearsed examples in the shape of the new task's."""
    columns = {"input_ids": [one.input_ids for one in examples], "labels": [one.labels for one in examples]}
    return Dataset(pa.table(columns, schema=SCHEMA))


def count_for(examples: int, share: float) -> int:
    """How many rehearsed examples make up a share of all; of none that is not 0 at least one."""
    return max(1, round(examples * share / (1 - share))) if share else 0


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
