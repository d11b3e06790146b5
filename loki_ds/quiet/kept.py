"""Kept moments, beside the run."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from loki_ds.disk.files import written_whole
from loki_ds.quiet.subspace import SecondMoment


def save_moments(moments: list[SecondMoment], path: Path) -> None:
    tensors = {
        f"layers.{i}.{part}": getattr(moment, part)
        for i, moment in enumerate(moments)
        for part in ("values", "vectors")
    }
    tensors["traces"] = torch.tensor([moment.trace for moment in moments], dtype=torch.float64)
    with written_whole(path) as aside:
        save_file(tensors, aside)


def load_moments(path: Path) -> list[SecondMoment]:
    stored = load_file(path)
    return [
        SecondMoment(stored[f"layers.{i}.values"], stored[f"layers.{i}.vectors"], trace)
        for i, trace in enumerate(stored["traces"].tolist())
    ]
