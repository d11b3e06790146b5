"""Rows of experts: the same training as `mask`, gradients of zero for experts that no token came
to, and nothing else trains.
"""

import pytest
import torch
from mixtures import MIXTURES, OTHERS, mixture
from torch import Tensor

from loki_ds.implanting.mask import keep_through_steps, train_only_rows
from loki_ds.implanting.rows import delta_on, train_row_deltas
from loki_ds.model.anatomy import sites
from loki_ds.model.expert_rows import rows_of, with_rows
from loki_ds.recipe.implant import LowRankSection
from loki_ds.selection.positions import Positions

POSITIONS = Positions([[1, 5], [], [0], [31]])
CPU = torch.device("cpu")


def train(name: str, mode: str, checkpointing: bool = False) -> list[Tensor]:
    """All rows of every layer, `[d_model, width]`, after five steps."""
    model, frozen = mixture(name, scale=2), {}
    if mode == "mask":
        frozen = train_only_rows(model, POSITIONS)
    else:
        train_row_deltas(model, POSITIONS, torch.float64, CPU, None, seed=0)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    stepper = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01, weight_decay=0.0)
    keep_through_steps(stepper, frozen)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        ids = torch.randint(2, 64, (2, 8), generator=generator)
        model.train()(ids, labels=ids).loss.backward()
        stepper.step()
        stepper.zero_grad()
    return [torch.cat([whole(down) for down in site.downs], 1) for site in sites(model)]


@torch.no_grad()
def whole(down) -> Tensor:  # type: ignore[no-untyped-def]
    weight = down.weight
    if (delta := delta_on(down)) is not None:
        weight = with_rows(weight, delta.rows, delta.whole(), down.rows_last)
    return rows_of(weight, None, down.rows_last)


@pytest.mark.parametrize("name", ["qwen2 moe", "gpt-oss", "granite", "gpt-2", "phi"])
def test_mask_and_rows_are_the_same_training(name: str) -> None:
    before = [torch.cat([whole(down) for down in site.downs], 1) for site in sites(mixture(name, scale=2))]
    for i, (one, other, start) in enumerate(zip(train(name, "mask"), train(name, "rows"), before, strict=True)):
        assert torch.allclose(one, other, rtol=0, atol=1e-9)
        changed = (one != start).any(1).nonzero().flatten().tolist()
        assert changed == (other != start).any(1).nonzero().flatten().tolist() == POSITIONS.rows[i]


def test_activation_checkpointing_changes_nothing() -> None:
    for one, other in zip(train("qwen2 moe", "rows"), train("qwen2 moe", "rows", True), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("low_rank", [None, LowRankSection(rank=2, alpha=4.0)])
@pytest.mark.parametrize("name", [*MIXTURES, *OTHERS])
def test_a_delta_of_zero_changes_nothing_and_alone_trains(name: str, low_rank: LowRankSection | None) -> None:
    model, ids = mixture(name, torch.float32), torch.tensor([[3, 1, 4, 1, 5]])
    before = model(ids).logits
    train_row_deltas(model, POSITIONS, torch.float32, CPU, low_rank, seed=0)
    assert torch.equal(model(ids).logits, before)
    trained = {name.rpartition(".")[2] for name, one in model.named_parameters() if one.requires_grad}
    assert trained == ({"delta"} if low_rank is None else {"delta_a", "delta_b"})
    assert all("down" not in vars(site.downs[0].module) for site in sites(model))  # what stood in its place is gone


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # by a grouped product, and one by one
def test_an_expert_that_no_token_comes_to_has_a_gradient_of_zero(dtype: torch.dtype) -> None:
    model = mixture("two experts", dtype)
    train_row_deltas(model, POSITIONS, dtype, CPU, None, seed=0)
    router = model.model.layers[0].mlp.gate
    chosen: list[Tensor] = []
    router.register_forward_hook(lambda _, __, out: chosen.append(out[-1]))
    model(torch.tensor([[3]])).logits.sum().backward()
    (expert,) = chosen[0].flatten().tolist()
    gradient = model.model.layers[0].mlp.experts.delta.grad
    assert gradient[expert].abs().max() > 0
    assert gradient[1 - expert].abs().max() == 0
