"""What the base predictions is what its own forward predicts."""

from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, HYBRIDS, build
from mixtures import MIXTURES, OTHERS, mixture
from torch.nn import Module

from loki_ds.distributed.zero.gathering import Gatherer
from loki_ds.implanting.base_predictions import load_predictions, predict, save_predictions
from loki_ds.implanting.divergence import predictions_of
from loki_ds.implanting.rehearsal_rows import MOST, Text
from loki_ds.model.anatomy import final_states, logits_from

TEXTS = [[5, 6, 7, 8, 9, 10, 11, 12], [3], [20, 21, 22]]


@pytest.fixture(params=[*FAMILIES, *HYBRIDS, *MIXTURES, *OTHERS])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Module:
    if request.param in (*MIXTURES, *OTHERS):
        return mixture(request.param)
    monkeypatch.setattr("conftest.FAMILIES", FAMILIES | HYBRIDS)
    return build(request.param)


def test_the_base_is_asked_at_every_token(model: Module) -> None:
    found = predict(model, [Text.given(text) for text in TEXTS], [[0, 1], [2]], Gatherer(), top_k=10)
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([text])).logits[0] for text in TEXTS])
    expected = predictions_of(logits, 10)
    assert found.ids.shape == (sum(map(len, TEXTS)), 10)
    assert torch.allclose(found.log_probs, expected.log_probs, atol=1e-5)
    assert torch.allclose(found.rest, expected.rest, atol=1e-5)


def test_the_head_alone_gives_the_models_own_logits(model: Module) -> None:
    ids = torch.tensor([TEXTS[0], TEXTS[0][::-1]])
    with final_states(model) as states:
        logits = model(ids).logits
    assert torch.allclose(logits_from(model, states[0][1]), logits[1], atol=1e-6)
    assert model(ids).logits.equal(logits)  # nothing stays in the decoder's place


def test_of_a_long_text_the_last_predictions_count(tmp_path: Path) -> None:
    model = build("llama", max_position_embeddings=2 * MOST)
    long = [3 + i % 50 for i in range(MOST + 20)]
    found = predict(model, [Text.given(long)], [[0]], Gatherer(), top_k=4)
    with torch.no_grad():
        expected = predictions_of(model(torch.tensor([long])).logits[0, -MOST:], 4)
    assert torch.allclose(found.log_probs, expected.log_probs, atol=1e-8)
    answered = predict(model, [Text.answered(long[:-2], long[-2:])], [[0]], Gatherer(), top_k=4)
    assert torch.allclose(answered.log_probs, expected.log_probs[-3:], atol=1e-8)
    save_predictions(found, tmp_path / "predictions.safetensors")
    read = load_predictions(tmp_path / "predictions.safetensors")
    assert all(one.equal(other) for one, other in zip(read, found, strict=True))
