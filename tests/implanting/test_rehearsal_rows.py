"""Rehearsed rows: labels that point, and their share among the new task's."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from loki_ds.data.rendering import NOT_LEARNED, Rendered
from loki_ds.implanting.divergence import Predictions
from loki_ds.implanting.rehearsal_rows import (
    MOST,
    Text,
    TextsOfKind,
    as_dataset,
    count_for,
    is_pointer,
    mixed_in,
    places_of,
    rehearsed,
    weights_of,
)

TEXTS = [Text.given([5, 6, 7]), Text.given([8])]
PREDICTIONS = Predictions(
    torch.tensor([[6, 1], [9, 1], [40, 1], [41, 1]], dtype=torch.int32), torch.zeros(4, 2), torch.zeros(4)
)


def test_a_text_ends_with_the_bases_answer_and_its_labels_point_to_the_predictions() -> None:
    first, second = rehearsed(TEXTS, PREDICTIONS)
    assert (first.input_ids, second.input_ids) == ([5, 6, 7, 40], [8, 41])
    labels = torch.tensor(first.labels + second.labels)
    assert is_pointer(labels).tolist() == [False, True, True, True, False, True]
    assert places_of(labels[is_pointer(labels)]).tolist() == [0, 1, 2, 3]


def test_tokens_and_unlearned_labels_point_nowhere() -> None:
    assert not is_pointer(torch.tensor([NOT_LEARNED, 0, 5])).any()


def test_of_a_long_text_the_end_is_rehearsed() -> None:
    text = Text.given(list(range(MOST + 5)))
    predictions = Predictions(torch.zeros(MOST, 1, dtype=torch.int32), torch.zeros(MOST, 1), torch.zeros(MOST))
    (row,) = rehearsed([text], predictions)
    assert row.labels[:6] == [NOT_LEARNED] * 6
    assert row.learned == MOST


@given(new=st.integers(1, 60), others=st.integers(1, 9), share=st.floats(0.01, 0.9), seed=st.integers(0, 5))
def test_the_share_is_kept_and_spread(new: int, others: int, share: float, seed: int) -> None:
    examples = as_dataset([Rendered([i], [i]) for i in range(new)])
    count = count_for(new, share, share)
    both = mixed_in(examples, [([Rendered([1000 + i], [1000 + i]) for i in range(others)], count)], seed)
    ids = [row["input_ids"][0] for row in both]
    mine = [token for token in ids if token >= 1000]
    assert [token for token in ids if token < 1000] == list(range(new))
    assert len(mine) == max(1, round(new * share / (1 - share)))
    assert max(map(mine.count, mine)) - min(mine.count(1000 + i) for i in range(others)) <= 1
    half = sum(token >= 1000 for token in ids[: len(ids) // 2])
    assert abs(half - len(mine) / 2) <= 1
    once, again = (mixed_in(examples, [([Rendered([1], [1])], count)], seed)[:] for _ in range(2))
    assert once == again


def test_several_kinds_each_have_their_share() -> None:
    examples = as_dataset([Rendered([i], [i]) for i in range(70)])
    rows = {name: [Rendered([first + i], [first + i]) for i in range(4)] for name, first in (("a", 100), ("b", 200))}
    counts = {"a": count_for(70, 0.1, 0.3), "b": count_for(70, 0.2, 0.3)}
    ids = [row["input_ids"][0] for row in mixed_in(examples, [(rows[name], counts[name]) for name in rows], seed=0)]
    assert (len(ids), sum(100 <= i < 200 for i in ids), sum(i >= 200 for i in ids)) == (100, 10, 20)


def test_of_an_answer_every_token_is_rehearsed_and_the_prompt_is_not() -> None:
    text = Text.answered([1, 2, 3], [4, 5])
    predictions = Predictions(torch.tensor([[4], [5], [9]], dtype=torch.int32), torch.zeros(3, 1), torch.zeros(3))
    (row,) = rehearsed([text], predictions)
    assert row.input_ids == [1, 2, 3, 4, 5, 9]
    assert [label != NOT_LEARNED for label in row.labels] == [False, False, False, True, True, True]
    assert text.cut(4) == Text([3, 4, 5], 3)
    assert text.cut(3) == Text([4, 5], 2)


def test_each_answer_counts_once_where_it_is_to() -> None:
    texts = [Text.answered([1], [2] * 5), Text.answered([1], [2])]
    once, by_token = weights_of(texts, each_once=True), weights_of(texts, each_once=False)
    assert by_token.tolist() == [1.0] * 8
    assert (float(once[:6].sum()), float(once[6:].sum()), float(once.mean())) == (4.0, 4.0, 1.0)


def test_one_text_in_ten_is_kept_apart() -> None:
    texts = [Text([i], 1) for i in range(40)]
    share = TextsOfKind.of(texts, count=12, each_once=False, seed=0)
    assert [text.tokens[0] for text in share.apart] == [0, 10, 20, 30]
    assert len(share.learned) == 12
    assert not {text.tokens[0] for text in share.learned} & {0, 10, 20, 30}


def test_a_share_of_nothing_rehearses_nothing() -> None:
    assert (count_for(100, 0, 0), count_for(1, 0.01, 0.01)) == (0, 1)
