"""Rows of any linear layer train as full fine-tuning would train them, and nothing else does."""

import pytest
import torch
from conftest import FAMILIES, HYBRIDS, build
from mixtures import mixture
from torch import Tensor
from torch.nn import Module

from loki_ds.implanting.mask import keep_through_steps, train_only_rows
from loki_ds.implanting.rows import delta_on, train_row_deltas
from loki_ds.model.expert_rows import rows_of, with_rows
from loki_ds.model.row_blocks import blocks_of, named_blocks, row_blocks
from loki_ds.model.row_weights import RowWeight
from loki_ds.recipe.implant import LowRankSection
from loki_ds.selection.positions import Positions
from loki_ds.selection.select import select_random

CPU = torch.device("cpu")
IDS = torch.randint(2, 64, (2, 8), generator=torch.Generator().manual_seed(0))
MODELS = ("llama", "phi3", "qwen3.5", "gpt-2", "qwen2 moe", "gpt-oss", "gemma 4")  # dense, hybrid, other ways, mixtures


@pytest.fixture(autouse=True)
def _hybrids_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, hybrid in HYBRIDS.items():
        monkeypatch.setitem(FAMILIES, name, hybrid)


def made(name: str) -> Module:
    return build(name) if name in FAMILIES else mixture(name, scale=2)


def positions_in(model: Module, where: str) -> Positions:
    return select_random(blocks_of(row_blocks(model, where)), 20, seed=0)


@pytest.mark.parametrize("where", ["gate_up", "attention", "all"])
@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_full_fine_tuning_at_the_rows(name: str, where: str) -> None:
    whole = made(name).train()
    positions = positions_in(whole, where)
    whole(IDS, labels=IDS).loss.backward()
    rows_alone = made(name).train()
    train_row_deltas(rows_alone, positions, torch.float64, CPU, None, seed=0)
    rows_alone(IDS, labels=IDS).loss.backward()
    blocks = [named_blocks(model, positions.blocks) for model in (whole, rows_alone)]
    compared = 0
    for full, confined, rows in zip(*blocks, positions.rows, strict=True):
        for weight, with_delta in zip(full.weights, confined.weights, strict=True) if rows else ():
            delta = delta_on(with_delta)
            assert delta is not None
            expected = weight.module._parameters[weight.attribute].grad
            expected = expected.transpose(-1, -2) if weight.rows_last else expected
            assert torch.allclose(
                delta.whole().grad, expected.index_select(-2, torch.tensor(rows)), rtol=1e-9, atol=1e-12
            )
            compared += 1
    assert compared == sum(parameter.requires_grad for parameter in rows_alone.parameters())


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen2 moe", "gpt-oss"])
def test_mask_and_rows_are_the_same_training(name: str) -> None:
    positions = positions_in(made(name), "all")
    starts = weights_after(made(name), positions, {}, steps=0)
    masked, with_deltas = made(name), made(name)
    frozen = train_only_rows(masked, positions)
    train_row_deltas(with_deltas, positions, torch.float64, CPU, None, seed=0)
    compared = zip(
        weights_after(masked, positions, frozen), weights_after(with_deltas, positions, {}), starts, strict=True
    )
    for i, (one, other, start) in enumerate(compared):
        assert torch.allclose(one, other, rtol=0, atol=1e-9)
        assert (one != start).any(1).nonzero().flatten().tolist() == positions.rows[i]


def weights_after(model: Module, positions: Positions, frozen: dict[Tensor, Tensor], steps: int = 3) -> list[Tensor]:
    """All rows of every block, `[rows, width]`, after some steps."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    stepper = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.0)
    keep_through_steps(stepper, frozen)
    for _ in range(steps):
        model.train()(IDS, labels=IDS).loss.backward()
        stepper.step()
        stepper.zero_grad()
    return [
        torch.cat([whole(weight) for weight in found.weights], 1) for found in named_blocks(model, positions.blocks)
    ]


@torch.no_grad()
def whole(held: RowWeight) -> Tensor:
    weight, delta = held.weight, delta_on(held)
    if delta is not None:
        weight = with_rows(weight, delta.rows, delta.whole(), held.rows_last)
    return rows_of(weight, None, held.rows_last).clone()


@pytest.mark.parametrize("name", ["llama", "qwen2 moe", "gpt-oss"])
def test_low_rank_deltas_of_two_weights_of_one_module_stay_apart(name: str) -> None:
    model = made(name)
    before = model(IDS).logits
    positions = positions_in(model, "all")
    train_row_deltas(model, positions, torch.float64, CPU, LowRankSection(rank=2, alpha=4.0), seed=0)
    assert torch.equal(model(IDS).logits, before)
    deltas = [delta_on(weight) for found in named_blocks(model, positions.blocks) for weight in found.weights]
    factors = [factor for delta in deltas if delta is not None and delta.factors for factor in delta.factors]
    assert len({id(factor) for factor in factors}) == 2 * len(deltas)
