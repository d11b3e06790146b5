"""Batches: each prompt once, like with like, sized by memory, halved when it runs out; the scores
stay the same.
"""

import logging
import pickle
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from conftest import build
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from loki_ds import attribute
from loki_ds.attribution import batches as batches_module
from loki_ds.attribution.batches import NoRoom, affordable_batch, batches
from loki_ds.attribution.layer_call import shared_length
from loki_ds.attribution.sweep import Sweep
from loki_ds.model.anatomy import decoder_layers
from loki_ds.refusal import Refusal

SHOTS = [list(range(1, 41)), list(range(20, 60))]  # two few-shot headers of 40 tokens


def with_shots(header: int, *lengths: int) -> list[list[int]]:
    return [SHOTS[header] + [60 + i % 3, *range(length)] for i, length in enumerate(lengths)]


def out_of_memory_above(model: PreTrainedModel, prompts: int) -> None:
    """The model's second layer runs out of memory for more prompts than that."""

    def full(_: object, arguments: tuple, *__: object) -> None:
        batch, rows, _ = arguments[0].shape
        if rows > 1 and batch > prompts:  # single rows go to the head
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    decoder_layers(model)[1].register_forward_pre_hook(full)


def test_prompts_that_begin_alike_go_together() -> None:
    prompts = [*with_shots(0, 1, 2, 3), [5, 6, 7], *with_shots(1, 4, 2), [8]]
    assert batches(prompts, 8) == [[2, 1, 0], [4, 5], [3, 6]]  # the most work first
    assert batches(prompts, 2) == [[4, 5], [2, 1], [0], [3, 6]]


def test_a_long_prompt_is_not_padded_to_by_short_ones() -> None:
    lengths = [2448, 2000, 600, 590, 580, 100, 5, 4]
    prompts = [[i, *range(length - 1)] for i, length in enumerate(lengths)]  # no two begin alike
    assert batches(prompts, 8) == [[0, 1], [2, 3, 4], [5], [6, 7]]


def test_ranks_side_by_side_have_about_as_much_to_do() -> None:
    prompts = [[5000 + i, *range(1399)] for i in range(2)] + [[6000 + i, *range(499)] for i in range(6)]
    assert batches(prompts, 6) == [[2, 3, 4, 5, 6, 7], [0, 1]]  # 3,000 tokens before 2,800


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=50), min_size=1, max_size=12), st.integers(1, 5))
def test_every_prompt_is_in_one_batch(prompts: list[list[int]], size: int) -> None:
    planned = batches(prompts, size)
    assert sorted(i for batch in planned for i in batch) == list(range(len(prompts)))
    assert max(map(len, planned)) <= size


def test_shared_length_never_counts_a_last_token() -> None:
    assert shared_length([SHOTS[0], SHOTS[0]]) == 39
    assert shared_length([SHOTS[0]]) == 0
    assert shared_length([[1, 2, 3], [1, 2, 4]]) == 0  # not worth a call of its own
    assert shared_length([SHOTS[0] + [1] * 200, SHOTS[0] + [2]]) == 0


def test_running_out_of_memory_only_makes_batches_smaller(caplog: pytest.LogCaptureFixture) -> None:
    model, prompts = build("qwen2"), with_shots(0, 1, 2, 3, 1, 2)
    expected = attribute(model, prompts, batch_size=1)
    out_of_memory_above(model, 2)
    with caplog.at_level(logging.WARNING):
        scores = attribute(model, prompts, batch_size=5)
    assert torch.allclose(scores, expected, rtol=1e-9, atol=1e-12)
    assert "out of memory at 5 prompts in a batch; going on with 2" in caplog.text


def test_a_prompt_that_does_not_fit_alone_is_refused() -> None:
    model = build("qwen2")
    out_of_memory_above(model, 0)
    with pytest.raises(Refusal, match="a single prompt does not fit"):
        attribute(model, [[1, 2], [3]])


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    model = build("qwen2")
    decoder_layers(model)[1].register_forward_pre_hook(lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        attribute(model, [[1, 2]])


def test_where_two_prompts_do_not_fit_one_is_tried() -> None:
    def work(prompts: Sequence[Sequence[int]], most: int) -> None:
        if len(prompts) > most:
            raise NoRoom

    assert affordable_batch(partial(work, most=1), [[1] * 60] * 3, 2**34) == 1
    with pytest.raises(Refusal, match="attribute: a single prompt does not fit the device's memory"):
        affordable_batch(partial(work, most=0), [[1] * 60] * 3, 2**34)


def test_the_batch_follows_the_budget() -> None:
    sweep, prompts = (
        Sweep(build("qwen2", torch.float32, hidden_size=512, intermediate_size=2048), steps=16),
        [[1] * 60] * 3,
    )
    sizes = [affordable_batch(sweep.run, prompts, budget) for budget in (0, 2**34)]
    assert sizes == [1, 64]


def test_ranks_send_their_scores_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A view of a batch's scores pickles the whole batch's storage, once a prompt."""
    sent: list[int] = []

    def all_gather(value: object) -> list[object]:
        sent.append(len(pickle.dumps(value)))
        return [value]

    monkeypatch.setattr(batches_module, "is_sharded", lambda _: True)
    monkeypatch.setattr(batches_module, "all_gather", all_gather)
    prompts = [[3, 4, 5 + i] for i in range(16)]
    scores = attribute(build("llama", torch.float32), prompts, batch_size=16)
    assert sent[-1] < 2 * scores.nbytes + 16 * 500
