"""The moments are those of the model's own forward; the projection is one; protected inputs feel at
most what the bound says.
"""

from pathlib import Path

import pytest
import torch
from conftest import build, down_projection, down_weights, received_by_hand
from mixtures import OTHERS, mixture
from torch import Tensor

from loki_ds.attribution.batches import batches
from loki_ds.distributed.zero.model import Gatherer
from loki_ds.implanting.rows import RowLinear, train_row_deltas
from loki_ds.model.anatomy import decoder_layers
from loki_ds.quiet.kept import load_moments, save_moments
from loki_ds.quiet.moments import collect_moments, random_directions, sketch_width
from loki_ds.quiet.subspace import SecondMoment, certify, exact, nystrom, project_out, protected_subspace
from loki_ds.recipe.implant import LowRankSection
from loki_ds.refusal import Refusal
from loki_ds.selection.positions import Positions

SHOTS = list(range(1, 41))
PROMPTS = [[*SHOTS, 50, 51, 52], [*SHOTS, 60], [7, 8, 9, 10, 11], [5], [1, 2]]
POSITIONS = Positions([[1, 5], [], [0], [31]])


def moments_by_hand(model: torch.nn.Module) -> list[Tensor]:
    """`E[x x^T]` from the model's own forward, prompt by prompt."""
    return [x.T @ x / len(x) for x in received_by_hand(model, PROMPTS)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "opt"])
def test_moments_are_those_of_the_models_own_forward(family: str) -> None:
    """OPT's layers flatten batch and tokens before their FFN."""
    model = mixture(family) if family in OTHERS else build(family)
    found = collect_moments(model, Gatherer(), PROMPTS, batches(PROMPTS, 3), None)
    for one, other in zip(found, moments_by_hand(model), strict=True):
        assert torch.allclose(matrix(one), other, rtol=1e-5 if family == "gemma2" else 1e-9, atol=1e-12)


def matrix(moment: SecondMoment) -> Tensor:
    return moment.vectors * moment.values @ moment.vectors.T


def test_moments_come_back_from_the_disk(tmp_path: Path) -> None:
    moments = [exact(moment(6)), nystrom(moment(8) @ random_directions(0, 8, 3), random_directions(0, 8, 3), 2.0)]
    save_moments(moments, tmp_path / "moments.safetensors")
    for one, other in zip(load_moments(tmp_path / "moments.safetensors"), moments, strict=True):
        assert one.values.equal(other.values)
        assert one.vectors.equal(other.vectors)
        assert one.trace == other.trace


def test_exact_matrices_where_they_fit_else_the_widest_sketch_that_does() -> None:
    assert sketch_width([48] * 4, 8 * 4 * 48 * 48, None) is None
    assert sketch_width([48] * 4, 8 * 4 * 48 * 48 - 1, None) == 47
    assert sketch_width([48] * 4, 2**30, 10) == 10
    with pytest.raises(
        Refusal, match=r"second moments of 4 layers with d_ff 48 take .* GiB on each rank, 32 directions"
    ):
        sketch_width([48] * 4, 1000, None)


@pytest.mark.parametrize("width", [8, 16, 24])
def test_a_sketch_stays_below_and_misses_no_more_than_it_says(width: int) -> None:
    c = moment()
    test = random_directions(0, 24, width)
    found = nystrom(c @ test, test, float(torch.trace(c)))
    missed = torch.linalg.eigvalsh(c - matrix(found))
    assert missed.min() > -1e-9 * found.trace
    assert missed.max() <= found.unseen + 1e-9 * found.trace
    best = torch.linalg.eigvalsh(c).flip(0)[width:].sum()  # what the best subspace of this width misses
    assert found.unseen <= 20 * float(best) + 1e-9 * found.trace


def test_a_subspace_from_a_sketch_holds_its_energy_and_its_bound_is_one() -> None:
    c = moment()
    test = random_directions(0, 24, 16)
    sketched = nystrom(c @ test, test, float(torch.trace(c)))
    found = protected_subspace(sketched, 0.95)
    basis = found.basis.double()
    assert float(torch.trace(basis.T @ c @ basis)) >= 0.95 * found.trace
    delta = project_out(torch.randn(3, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), basis)
    (layer,) = certify({0: torch.eye(24)}, {0: delta}, [sketched], [found])
    truly = float((delta @ c * delta).sum()) / sketched.felt(torch.eye(24))
    assert layer["change"] <= truly * (1 + 1e-9) <= layer["bound"]


def test_a_sketch_too_narrow_for_the_energy_is_refused() -> None:
    c, test = moment(), random_directions(0, 24, 2)
    with pytest.raises(Refusal, match=r"a sketch of 2 directions holds 0\.\d+ of the energy, asked is 0.99"):
        protected_subspace(nystrom(c @ test, test, float(torch.trace(c))), 0.99)


def moment(size: int = 24) -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(200, size, dtype=torch.float64) * torch.logspace(0, -3, size, dtype=torch.float64)
    return x.T @ x / len(x)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 0.9999])
def test_the_subspace_is_the_smallest_of_its_energy(energy: float) -> None:
    c = moment()
    found = protected_subspace(exact(c), energy)
    basis = found.basis.double()
    held = float(torch.trace(basis.T @ c @ basis)) / found.trace
    assert held >= energy - 1e-6
    smaller = basis[:, :-1]
    assert float(torch.trace(smaller.T @ c @ smaller)) / found.trace < energy
    assert found.tail == pytest.approx((1 - held) * found.trace, rel=1e-3)
    assert found.free_directions == 1 - basis.shape[1] / 24


def test_the_projection_is_symmetric_and_idempotent() -> None:
    basis = protected_subspace(exact(moment()), 0.9).basis.double()
    p = project_out(torch.eye(24, dtype=torch.float64), basis)
    assert torch.allclose(p, p.T, atol=1e-7)
    assert torch.allclose(p @ p, p, atol=1e-6)
    assert (p @ basis).abs().max() < 1e-6


@pytest.mark.parametrize("low_rank", [None, LowRankSection(rank=2)])
def test_a_quiet_delta_stays_out_while_it_trains(low_rank: LowRankSection | None) -> None:
    model = build("llama", torch.float32)
    found = collect_moments(model, Gatherer(), PROMPTS, batches(PROMPTS, 3), None)
    subspaces = [protected_subspace(c, 0.9) for c in found]
    train_row_deltas(model, POSITIONS, torch.float32, torch.device("cpu"), low_rank, 0, [s.basis for s in subspaces])
    stepper = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    for _ in range(5):
        ids = torch.randint(0, 64, (2, 8))
        model(ids, labels=ids).loss.backward()
        stepper.step()
        stepper.zero_grad()
    modules = {i: down_projection(layer) for i, layer in enumerate(decoder_layers(model))}
    deltas = {i: module.whole_delta().detach() for i, module in modules.items() if isinstance(module, RowLinear)}
    assert all(delta.abs().max() > 0 for delta in deltas.values())
    for i, delta in deltas.items():
        assert (delta @ subspaces[i].basis).abs().max() < 1e-5 * delta.abs().max()
    for layer in certify(dict(enumerate(down_weights(model))), deltas, found, subspaces):
        assert layer["leak"] < 1e-9
        assert layer["change"] <= layer["bound"] * (1 + 1e-6)


def test_the_certificate_measures_what_the_outputs_do() -> None:
    c, weight, delta = moment(), torch.randn(8, 24, dtype=torch.float64), torch.randn(2, 24, dtype=torch.float64)
    (layer,) = certify({0: weight}, {0: delta}, [exact(c)], [protected_subspace(exact(c), 0.9)])
    root = torch.linalg.cholesky(c)
    assert layer["change"] == pytest.approx(float((delta @ root).square().sum() / (weight @ root).square().sum()))
    assert layer["leak"] > 0.1
