"""Which inputs are frozen, and that nothing of them changes."""

from pathlib import Path

import pytest
import torch
from conftest import build, down_weights, received_by_hand

from loki_ds.attribution.batches import batches
from loki_ds.export.collect import Deltas, LayerDelta, WeightDelta
from loki_ds.export.products import Base, implant_of
from loki_ds.implanting.mask import QuietRows
from loki_ds.model.files import same_bits
from loki_ds.positions import Positions
from loki_ds.quiet.frozen import drawn, load_inputs, save_inputs, strongest, weight_times_input
from loki_ds.quiet.subspace import project_out
from loki_ds.recipe import ModelSection
from loki_ds.verification import verify
from loki_ds.zero.model import Gatherer

PROMPTS = [[3, 4, 5, 6, 7], [9, 8], [11]]
POSITIONS = Positions([[1, 5], [], [0], [31]])


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_inputs_count_by_weight_and_by_what_they_receive(family: str) -> None:
    model = build(family)
    received = received_by_hand(model, PROMPTS)
    found = weight_times_input(model, Gatherer(), PROMPTS, batches(PROMPTS, 2))
    for scores, inputs, weight in zip(found, received, down_weights(model), strict=True):
        expected = weight.double().norm(dim=0) * inputs.double().square().mean(0).sqrt()
        assert torch.allclose(scores, expected, rtol=1e-5 if family == "gemma2" else 1e-9)


def test_the_strongest_are_frozen_or_as_many_by_chance(tmp_path: Path) -> None:
    frozen = strongest([torch.tensor([0.1, 3.0, 2.0, 0.5]), torch.tensor([1.0, 1.0, 1.0, 1.0])], 0.5)
    assert [one.tolist() for one in frozen] == [[1, 2], [0, 1]]
    by_chance = drawn([40, 40], 0.25, seed=1)
    assert [len(one.unique()) for one in by_chance] == [10, 10]
    assert not by_chance[0].equal(by_chance[1])
    assert all(a.equal(b) for a, b in zip(by_chance, drawn([40, 40], 0.25, seed=1), strict=True))
    save_inputs(frozen, tmp_path / "f.safetensors")
    assert [one.tolist() for one in load_inputs(tmp_path / "f.safetensors")] == [[1, 2], [0, 1]]


def test_a_delta_keeps_out_of_them() -> None:
    delta, frozen = torch.randn(3, 6), torch.tensor([0, 4])
    kept = project_out(delta, frozen)
    assert kept[:, frozen].count_nonzero() == 0
    assert kept[:, [1, 2, 3, 5]].equal(delta[:, [1, 2, 3, 5]])
    base = torch.tensor([[-0.0, 1.0, 2.0, 3.0, -0.0, 5.0]])
    after = QuietRows([0], base, frozen)(base + 1)
    assert same_bits(after[:, frozen], base[:, frozen])
    assert after[:, 1].item() == 2.0


def test_what_leaves_the_run_has_the_bases_bits_there_and_verify_looks(tmp_path: Path) -> None:
    model = build("llama", torch.float32)
    with torch.no_grad():
        down_weights(model)[0][1, 2] = -0.0
    model.save_pretrained(tmp_path / "base")
    frozen = [torch.tensor([2, 7])] * 4
    kept_out = torch.ones(48).index_fill(0, frozen[0], 0)
    deltas = {
        i: LayerDelta([WeightDelta(kept_out.repeat(len(rows), 1))]) for i, rows in enumerate(POSITIONS.rows) if rows
    }
    base = Base(tmp_path / "base", "digest", ModelSection(path="base"))
    implant = implant_of(Deltas(deltas), base, POSITIONS, frozen)
    assert all(same_bits(rows.implanted[:, [2, 7]], rows.base[:, [2, 7]]) for rows in implant.layers.values())
    with torch.no_grad():
        for layer, rows in implant.layers.items():
            down_weights(model)[layer][rows.rows] = rows.implanted
    model.save_pretrained(tmp_path / "model")
    found = verify(tmp_path / "base", tmp_path / "model", POSITIONS, frozen)
    assert found.identical_outside_rows
    assert (found.rows_changed, found.inputs_frozen) == (4, 2)
    with torch.no_grad():
        down_weights(model)[2][0, 7] += 1
    model.save_pretrained(tmp_path / "model")
    assert verify(tmp_path / "base", tmp_path / "model", POSITIONS, frozen).changed_outside == [
        "model.layers.2.mlp.down_proj.weight"
    ]
