"""Selection against hand-made scores, and its independence of everything but the scores."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loki_ds.selection.blocks import Block, down_names
from loki_ds.selection.positions import Positions
from loki_ds.selection.select import rows_per_layer, select, select_random, split_half_overlap, within

SCORES = torch.tensor([[[-3.0, 0.1, 2.0, -1.0]], [[-3.0, 0.1, -2.0, 5.0]], [[4.0, 0.1, -2.0, -1.0]]])


@pytest.mark.parametrize(
    ("strategy", "rows"),
    [
        (
            "layer_balanced",
            [0, 2],
        ),  # votes of the two smallest: 0 and 3; 0 and 2; 2 and 3, so two votes each; means -2/3, 1, ...
        ("layer_highest", [1, 3]),  # votes of the two largest: 2 and 1; 3 and 1; 0 and 1
        ("layer_smallest", [1, 2]),  # mean absolute scores 10/3, 0.1, 2, 7/3
    ],
)
def test_by_hand(strategy: str, rows: list[int]) -> None:
    assert select(SCORES, 50, strategy).rows == [rows]


def test_global_strategies_choose_over_all_layers() -> None:
    scores = torch.tensor([[[-9.0, -8.0], [1.0, 2.0]]])
    assert select(scores, 50, "global_lowest").rows == [[0, 1], []]
    assert select(scores, 50, "global_highest").rows == [[], [0, 1]]


@pytest.mark.parametrize(
    ("d_model", "quota", "k"),
    [(896, 5, 44), (896, 10, 89), (896, 20, 179), (896, 30, 268), (4096, 10, 409), (4096, 30, 1228)],
)
def test_rows_per_layer_are_the_papers(d_model: int, quota: float, k: int) -> None:
    assert rows_per_layer(quota, d_model) == k


@given(st.integers(1, 5), st.integers(1, 3), st.integers(4, 12), st.integers(0, 1000))
def test_the_order_of_prompts_does_not_matter(prompts: int, layers: int, d_model: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 3, (prompts, layers, d_model), generator=generator).float()  # many ties
    shuffled = scores[torch.randperm(prompts, generator=generator)]
    assert select(scores, 40).rows == select(shuffled, 40).rows
    assert all(len(rows) == rows_per_layer(40, d_model) for rows in select(scores, 40).rows)


def test_split_halves_agree_on_what_all_prompts_say() -> None:
    same = torch.arange(12.0).expand(6, 2, 12)
    assert split_half_overlap(same, 50, "layer_balanced") == 1
    assert split_half_overlap(torch.stack([same[0], -same[0]] * 3), 50, "layer_balanced") == 0


@pytest.mark.parametrize("strategy", ["layer_balanced", "layer_highest", "layer_smallest", "global_lowest"])
def test_excluded_rows_are_never_chosen(strategy: str) -> None:
    scores = torch.randn(5, 3, 10, generator=torch.Generator().manual_seed(0))
    first = select(scores, 40, strategy)
    second = (
        select(scores, 40, strategy, exclude=first)
        if strategy != "global_lowest"
        else select(scores, 20, strategy, exclude=first)
    )
    assert all(set(one).isdisjoint(other) for one, other in zip(first.rows, second.rows, strict=True))
    assert second.count == (12 if strategy != "global_lowest" else 6)


def downs(layers: int, d_model: int) -> list[Block]:
    return [Block(name, d_model, 16, name) for name in down_names(layers)]


def test_there_must_be_rows_left() -> None:
    taken = Positions([[0, 1, 2], []])
    for choose in (
        lambda: select(torch.ones(1, 2, 4), 50, exclude=taken),
        lambda: select_random(downs(2, 4), 50, 0, taken),
    ):
        with pytest.raises(ValueError, match="quota asks for 2 rows, layer 0 has 1 that no excluded implant holds"):
            choose()


def test_random_rows_follow_their_seed() -> None:
    assert select_random(downs(3, 50), 20, seed=1) == select_random(downs(3, 50), 20, seed=1)
    assert select_random(downs(3, 50), 20, seed=1) != select_random(downs(3, 50), 20, seed=2)
    assert [len(rows) for rows in select_random(downs(3, 50), 20, seed=1).rows] == [10, 10, 10]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        select(torch.full((1, 1, 4), bad), 50)


@pytest.mark.parametrize("quota", [0, -1, 100, 101])
def test_quota_out_of_range(quota: float) -> None:
    with pytest.raises(ValueError, match="quota is"):
        rows_per_layer(quota, 8)


def test_neurons_that_another_implant_holds_in_part_are_not_chosen_again() -> None:
    gate, up = (Block(f"0.mlp.{name}", 10, 4, "0 neurons") for name in ("gate_proj", "up_proj"))
    held = Positions([[0, 1, 2, 3, 4]], ("0.mlp.up_proj",))
    chosen = select_random([gate, up], 50, 0, held)
    assert chosen.rows == [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9]]
    with pytest.raises(ValueError, match=r"quota asks for 6 rows, 0.mlp.gate_proj has 5"):
        select_random([gate, up], 60, 0, held)
    together = Block("0.mlp.gate_up_proj", 20, 4, "0 neurons", parts=2, interleaved=True)
    assert select_random([together], 50, 0, Positions([[1, 3, 4, 6, 8]], ("0.mlp.gate_up_proj",))).rows == [
        list(range(10, 20))
    ]


def test_a_range_of_layers() -> None:
    positions = within(select_random(downs(4, 10), 20, 0), [1, 2])
    assert [len(rows) for rows in positions.rows] == [0, 2, 2, 0]
