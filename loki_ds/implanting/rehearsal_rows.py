"""Rehearsed examples: texts whose labels point to what the base predicts, among the new task's.

A label below -100 is no token but a place among the predictions. So it goes wherever labels go: it
is packed, padded, cut and counted as a token that is learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from loki_ds.data.dataset import SCHEMA
from loki_ds.data.rendering import NOT_LEARNED, Rendered
from loki_ds.implanting.divergence import Predictions

HELD_OUT = 10  # one text in so many is never trained on
MOST_HELD_OUT = 64  # texts
MOST = 256  # predictions of a given text that are rehearsed, the last ones
FIRST = NOT_LEARNED - 1  # the label of the answer at place 0


class Text(NamedTuple):
    """Token ids, and after how many of the last ones the base's prediction is rehearsed."""

    tokens: list[int]
    predictions: int

    @classmethod
    def given(cls, tokens: list[int]) -> "Text":
        """A text that nobody's answer is marked in."""
        return cls(tokens, min(len(tokens), MOST))

    @classmethod
    def answered(cls, prompt: list[int], answer: list[int]) -> "Text":
        """A prompt and an answer, of which every token and what follows it are rehearsed."""
        return cls([*prompt, *answer], len(answer) + 1)

    def cut(self, length: int | None) -> "Text":
        """With room for the base's next token."""
        tokens = self.tokens if length is None else self.tokens[-(length - 1) :]
        return Text(tokens, min(len(tokens), self.predictions))


@dataclass(frozen=True)
class TextsOfKind:
    """Texts of one kind: those that are learned, and those whose drift is measured.

    count: how many go among the new task's examples. each_once: whether every text weighs as much
    as every other, whatever its length.
    """

    learned: list[Text]
    apart: list[Text]
    count: int
    each_once: bool

    @classmethod
    def of(cls, texts: Sequence[Text], count: int, each_once: bool, seed: int) -> "TextsOfKind":
        """At most `count` texts to learn, drawn by the seed."""
        others = [text for i, text in enumerate(texts) if i % HELD_OUT] or list(texts)
        drawn = Random(seed).sample(others, min(len(others), count))
        return cls(drawn, list(texts[::HELD_OUT][:MOST_HELD_OUT]), count, each_once)


class Rehearsed(NamedTuple):
    """What the base predicts, to which labels point, and untrained rows of texts, to measure their
    drift.

    weights: what each prediction weighs beside a token of the new task `[N]`. learned: whether any
    row that trains points to one.
    """

    predictions: Predictions
    weights: Tensor
    measured: Dataset
    learned: bool


@dataclass(frozen=True)
class Rehearsal:
    """All that is rehearsed in a training, kind by kind."""

    kinds: list[TextsOfKind]

    @property
    def texts(self) -> list[Text]:
        """What the base is asked about: all that is learned, then all that is measured."""
        learned = [text for kind in self.kinds for text in kind.learned]
        return learned + [text for kind in self.kinds for text in kind.apart]

    def mixed(self, new: Dataset, predictions: Predictions, seed: int) -> tuple[Dataset, Rehearsed]:
        """The new task's examples with rehearsed ones among them; and what their labels point to.

        predictions: the base's on `texts`.
        """
        apart = [text for kind in self.kinds for text in kind.apart]
        weights = [weights_of(kind.learned, kind.each_once) for kind in self.kinds] + [weights_of(apart, False)]
        by_base = iter(rehearsed(self.texts, predictions))
        rows = [([next(by_base) for _ in kind.learned], kind.count) for kind in self.kinds]
        learned = [each for each in rows if each[0]]
        measured = as_dataset(list(by_base))
        return mixed_in(new, learned, seed), Rehearsed(predictions, torch.cat(weights), measured, bool(learned))


def is_pointer(labels: Tensor) -> Tensor:
    return labels <= FIRST


def places_of(pointers: Tensor) -> Tensor:
    return FIRST - pointers


def rehearsed(texts: Sequence[Text], predictions: Predictions) -> list[Rendered]:
    """Each text and the base's likeliest token after it, with labels that point to predictions."""
    rendered, place = [], 0
    for tokens, count in texts:
        ids = [*tokens, int(predictions.ids[place + count - 1, 0])]
        pointers = [FIRST - (place + i) for i in range(count)]
        rendered.append(Rendered(ids, [NOT_LEARNED] * (len(ids) - count) + pointers))
        place += count
    return rendered


def weights_of(texts: Sequence[Text], each_once: bool) -> Tensor:
    """What each prediction weighs `[N]`, float32, 1 on average: all the same, or all texts the
    same.
    """
    counts = torch.tensor([float(text.predictions) for text in texts])
    each = counts.mean() / counts if each_once else torch.ones_like(counts)
    return each.repeat_interleave(counts.long())


def as_dataset(examples: Sequence[Rendered]) -> Dataset:
    """The rehearsed examples in the shape of the new task's."""
    columns = {"input_ids": [one.input_ids for one in examples], "labels": [one.labels for one in examples]}
    return Dataset(pa.table(columns, schema=SCHEMA))


def count_for(examples: int, share: float, of_all: float) -> int:
    """How many rehearsed examples make up a share of all, at least one of a share that is not 0.

    of_all: the share of all that is rehearsed.
    """
    return max(1, round(examples * share / (1 - of_all))) if share else 0


def mixed_in(examples: Dataset, rehearsed: Sequence[tuple[Sequence[Rendered], int]], seed: int) -> Dataset:
    """The new task's examples with others among them, spread evenly.

    rehearsed: of each kind the examples, and how many of them go in; drawn by seed, none twice
    before all are in.
    """
    places, parts, begin = [(float(i), i) for i in range(len(examples))], [examples], len(examples)
    for others, count in rehearsed:
        drawn: list[int] = []
        while len(drawn) < count:
            drawn += Random(f"{seed}-{len(drawn)}").sample(range(len(others)), len(others))
        places += [((k + 0.5) * len(examples) / count, begin + other) for k, other in enumerate(drawn[:count])]
        parts.append(as_dataset(others))
        begin += len(others)
    return concatenate_datasets(parts).select([row for _, row in sorted(places)])
