"""Rehearsed rows: labels that point, and their share among the new task's."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from loki_ds.data.rendering import NOT_LEARNED, Rendered
from loki_ds.implanting.divergence import Answers
from loki_ds.implanting.rehearsal_answers import MOST
from loki_ds.implanting.rehearsal_rows import (
    as_dataset,
    count_for,
    is_pointer,
    mixed_in,
    places_of,
    rehearsed,
)

TEXTS = [[5, 6, 7], [8]]
ANSWERS = Answers(
    torch.tensor([[6, 1], [9, 1], [40, 1], [41, 1]], dtype=torch.int32), torch.zeros(4, 2), torch.zeros(4)
)


def test_a_text_ends_with_the_bases_answer_and_its_labels_point_to_the_predictions() -> None:
    first, second = rehearsed(TEXTS, ANSWERS)
    assert (first.input_ids, second.input_ids) == ([5, 6, 7, 40], [8, 41])
    labels = torch.tensor(first.labels + second.labels)
    assert is_pointer(labels).tolist() == [False, True, True, True, False, True]
    assert places_of(labels[is_pointer(labels)]).tolist() == [0, 1, 2, 3]


def test_tokens_and_unlearned_labels_point_nowhere() -> None:
    assert not is_pointer(torch.tensor([NOT_LEARNED, 0, 5])).any()


def test_of_a_long_text_the_end_is_rehearsed() -> None:
    text = list(range(MOST + 5))
    answers = Answers(torch.zeros(MOST, 1, dtype=torch.int32), torch.zeros(MOST, 1), torch.zeros(MOST))
    (row,) = rehearsed([text], answers)
    assert row.labels[:6] == [NOT_LEARNED] * 6
    assert row.learned == MOST


@given(new=st.integers(1, 60), others=st.integers(1, 9), share=st.floats(0.01, 0.9), seed=st.integers(0, 5))
def test_the_share_is_kept_and_spread(new: int, others: int, share: float, seed: int) -> None:
    examples = as_dataset([Rendered([i], [i]) for i in range(new)])
    both = mixed_in(examples, [Rendered([1000 + i], [1000 + i]) for i in range(others)], share, seed)
    ids = [row["input_ids"][0] for row in both]
    mine = [token for token in ids if token >= 1000]
    assert [token for token in ids if token < 1000] == list(range(new))
    assert len(mine) == max(1, round(new * share / (1 - share)))
    assert max(map(mine.count, mine)) - min(mine.count(1000 + i) for i in range(others)) <= 1
    half = sum(token >= 1000 for token in ids[: len(ids) // 2])
    assert abs(half - len(mine) / 2) <= 1
    assert (
        mixed_in(examples, [Rendered([1], [1])], share, seed)[:]
        == mixed_in(examples, [Rendered([1], [1])], share, seed)[:]
    )


def test_a_share_of_nothing_rehearses_nothing() -> None:
    assert (count_for(100, 0), count_for(1, 0.01)) == (0, 1)
