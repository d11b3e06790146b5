"""Frozen rows stay bit for bit under any optimizer; selected rows move.

(Under ZeRO: tests/distributed.)
"""

import pytest
import torch
from conftest import build, down_weights
from torch import Tensor

from loki_ds.implanting.mask import keep_through_steps, train_only_rows
from loki_ds.selection.positions import Positions

POSITIONS = Positions([[1, 5], [], [0], [31]])
OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    "sgd with momentum and decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.5),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.5),
}


def train(optimizer: str, guarded: bool) -> tuple[list[Tensor], list[Tensor]]:
    """`W_down` of every layer before and after three steps."""
    model = build("llama", torch.float32)
    before = [weight.detach().clone() for weight in down_weights(model)]
    frozen = train_only_rows(model, POSITIONS)
    stepper = OPTIMIZERS[optimizer]([parameter for parameter in model.parameters() if parameter.requires_grad])
    if guarded:
        keep_through_steps(stepper, frozen)
    for _ in range(3):
        ids = torch.randint(0, 64, (2, 8))
        model(ids, labels=ids).loss.backward()
        stepper.step()
        stepper.zero_grad()
    return before, [weight.detach() for weight in down_weights(model)]


def rows_changed(before: Tensor, after: Tensor) -> list[int]:
    return (before.view(torch.int32) != after.view(torch.int32)).any(1).nonzero().flatten().tolist()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_the_selected_rows_change(optimizer: str) -> None:
    before, after = train(optimizer, guarded=True)
    assert [rows_changed(b, a) for b, a in zip(before, after, strict=True)] == POSITIONS.rows


def test_the_gradient_hook_alone_would_not_hold() -> None:
    before, after = train("adamw", guarded=False)
    assert rows_changed(before[0], after[0]) == list(range(32))


def test_nothing_else_asks_for_a_gradient() -> None:
    model = build("llama", torch.float32)
    train_only_rows(model, POSITIONS)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 2, 3)]
