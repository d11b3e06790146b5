"""`rows` and `lora`: the definition's numbers, gradients for the selected rows only, and the same
training as `mask`.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from conftest import build, down_projection, down_weights
from torch import Tensor
from torch.nn import Linear
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from loki_ds.implanting.mask import keep_through_steps, train_only_rows
from loki_ds.implanting.rows import RowLinear, Start, train_row_deltas
from loki_ds.model.expert_rows import with_rows
from loki_ds.recipe.implant import LowRankSection
from loki_ds.selection.positions import Positions

POSITIONS = Positions([[1, 5], [], [0], [31]])
CPU = torch.device("cpu")
LOW_RANK = LowRankSection(rank=2, alpha=4.0)


def row_linear(dtype: torch.dtype = torch.float64, low_rank: LowRankSection | None = None) -> RowLinear:
    torch.manual_seed(0)
    base = Linear(6, 5, bias=False, dtype=dtype).requires_grad_(False)
    module = RowLinear(base, [0, 3], Start(dtype, CPU, low_rank, seed=0))
    for parameter in module.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("low_rank", [None, LOW_RANK])
def test_forward_and_gradients_are_the_definitions(low_rank: LowRankSection | None) -> None:
    module = row_linear(low_rank=low_rank)
    x, upper = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True), torch.randn(2, 3, 5, dtype=torch.float64)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    y = module(x)
    found = torch.autograd.grad(y, [x, *trained], upper)
    selector = torch.zeros(5, 2, dtype=torch.float64)
    selector[[0, 3], [0, 1]] = 1
    expected_y = x @ module.weight.T + x @ module.row_deltas["weight"].whole().T @ selector.T
    assert torch.allclose(y, expected_y, atol=1e-12)
    for one, other in zip(found, torch.autograd.grad(expected_y, [x, *trained], upper), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_gradcheck() -> None:
    module, x = row_linear(), torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: module(x), (x, module.delta))


def test_only_the_deltas_train_and_start_at_nothing() -> None:
    for low_rank, names in ((None, {"delta"}), (LOW_RANK, {"delta_a", "delta_b"})):
        model = build("llama", torch.float32)
        before = model(torch.tensor([[1, 2, 3]])).logits
        train_row_deltas(model, POSITIONS, torch.float32, CPU, low_rank, seed=0)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {f"model.layers.{layer}.mlp.down_proj.{name}" for layer in (0, 2, 3) for name in names}
        assert torch.equal(model(torch.tensor([[1, 2, 3]])).logits, before)


def test_low_rank_starts_as_the_recipe_says() -> None:
    starts = {}
    for init in ("kaiming", "gaussian"):
        model = build("llama", torch.float32)
        train_row_deltas(model, POSITIONS, torch.float32, CPU, LowRankSection(rank=8, init=init), seed=3)
        starts[init] = down_projection(model.model.layers[0]).delta_b.detach()
    assert starts["kaiming"].abs().max() <= 48**-0.5
    assert starts["gaussian"].std() == pytest.approx(1 / 8, rel=0.2)


def test_the_sum_is_rounded_once() -> None:
    weight, delta = torch.tensor([[1.0], [1.0]], dtype=torch.bfloat16), torch.tensor([[2.0**-9]])
    assert with_rows(weight, torch.tensor([1]), delta).flatten().tolist() == [
        1.0,
        1.0,
    ]  # below half a step of bfloat16 at 1
    assert with_rows(weight, torch.tensor([1]), 3 * delta).flatten().tolist() == [1.0, 1.0078125]


def train(mode: str, optimizer: str, dtype: torch.dtype, checkpointing: str | None = None) -> list[Tensor]:
    """`W_down` of every layer after five steps."""
    model = build("llama", dtype)
    frozen = {}
    if mode == "mask":
        frozen = train_only_rows(model, POSITIONS)
    else:
        train_row_deltas(model, POSITIONS, dtype, CPU, None, seed=0)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        model.enable_input_require_grads()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    stepper = getattr(torch.optim, optimizer)(trained, lr=0.01, weight_decay=0.0)
    keep_through_steps(stepper, frozen)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        ids = torch.randint(0, 64, (2, 8), generator=generator)
        model.train()(ids, labels=ids).loss.backward()
        stepper.step()
        stepper.zero_grad()
    with torch.no_grad():
        modules = [down_projection(layer) for layer in model.model.layers]
        return [
            with_rows(m.weight, m.rows, m.row_deltas["weight"].whole())
            if isinstance(m, RowLinear)
            else m.weight.detach()
            for m in modules
        ]


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_mask_and_rows_are_the_same_training(optimizer: str) -> None:
    before = [weight.clone() for weight in down_weights(build("llama"))]
    for one, other, start in zip(
        train("mask", optimizer, torch.float64), train("rows", optimizer, torch.float64), before, strict=True
    ):
        assert torch.allclose(one, other, rtol=0, atol=1e-9)
        assert torch.equal(one, start) == torch.equal(other, start)


@pytest.mark.parametrize("checkpointing", ["reentrant", "not reentrant"])
@pytest.mark.parametrize("mode", ["mask", "rows"])
def test_activation_checkpointing_changes_nothing(mode: str, checkpointing: str) -> None:
    plain, checkpointed = train(mode, "SGD", torch.float64), train(mode, "SGD", torch.float64, checkpointing)
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(plain, checkpointed, strict=True))


def test_checkpointing_does_not_make_the_product_twice() -> None:
    def flops(call: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> int:
        module, x = row_linear(), torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        with FlopCounterMode(display=False) as counted:
            call(lambda x: module(x.sin()), x).sum().backward()
        return counted.get_total_flops()

    assert flops(partial(checkpoint, use_reentrant=False)) == flops(lambda block, x: block(x)) > 0


def test_bfloat16_under_autocast() -> None:
    module, x = row_linear(torch.float32), torch.randn(2, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        module(x).float().sum().backward()
    assert module.delta.grad.dtype == torch.float32
    assert x.grad.dtype == torch.float32
