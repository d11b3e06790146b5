"""Kept scores come back as they went in, prompt by prompt, and belong to one set of inputs."""

import threading
from pathlib import Path

import pytest
import torch

from loki_ds.attribution.kept import KeptScores
from loki_ds.attribution.sweep import Swept
from loki_ds.refusal import Refusal


def swept(scores: torch.Tensor) -> Swept:
    n, layers, _ = scores.shape
    return Swept(scores, torch.zeros(n, dtype=torch.long), torch.ones(n), torch.zeros(n, layers))


def test_scores_return_in_the_protected_sets_order(tmp_path: Path) -> None:
    kept, scores = KeptScores(tmp_path / "attribution"), torch.randn(5, 3, 16)
    kept.open_for({"model": "a"})
    kept.add([4, 0], swept(scores[[4, 0]]))
    assert kept.done() == {0, 4}
    kept.add([2, 3, 1], swept(scores[[2, 3, 1]]))
    assert kept.done() == {0, 1, 2, 3, 4}
    largest = scores.abs().amax(-1, keepdim=True)
    assert ((kept.scores() - scores).abs() / largest).max() < 2**-11


def test_scores_that_are_seen_late_are_waited_for_and_missing_ones_refused(tmp_path: Path) -> None:
    """NFS shows another node's last file up to a minute after it was written."""
    kept = KeptScores(tmp_path / "attribution")
    kept.open_for({})
    kept.note(batches=[[0, 1], [2]])
    kept.add([0, 1], swept(torch.randn(2, 3, 16)))
    with pytest.raises(Refusal, match=r"the scores of 1 of 3 prompts are not there .of number 2, for one"):
        kept.wait_until_whole(patience=0)
    late = threading.Timer(0.5, kept.add, ([2], swept(torch.randn(1, 3, 16))))
    late.start()
    kept.wait_until_whole(patience=30)
    assert kept.done() == {0, 1, 2}


def test_tiny_scores_keep_their_precision(tmp_path: Path) -> None:
    kept, scores = KeptScores(tmp_path / "attribution"), torch.randn(1, 1, 64) * 1e-12
    kept.open_for({})
    kept.add([0], swept(scores))
    assert torch.allclose(kept.scores(), scores, rtol=1e-3, atol=1e-15)


def test_a_pass_over_other_inputs_is_refused_by_name(tmp_path: Path) -> None:
    KeptScores(tmp_path).open_for({"model": "a", "steps": 7})
    KeptScores(tmp_path).open_for({"model": "a", "steps": 7})
    with pytest.raises(Refusal, match="made with steps 7, now it is 3"):
        KeptScores(tmp_path).open_for({"model": "a", "steps": 3})
