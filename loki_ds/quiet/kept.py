"""Kept moments: the finished ones beside the run, and every rank's sums so far, so that a killed
collection resumes where it was.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loki_ds.quiet.subspace import SecondMoment
from loki_ds.ranks import all_gather, barrier, rank, world_size
from loki_ds.run_folder import remove, written_whole

log = logging.getLogger(__name__)


@dataclass
class Sums:
    """What one rank has seen: per layer `sum x x^T` `[d_ff, d_ff]` or its product with the test
    matrix `[d_ff, s]`, and `sum |x|^2`.
    """

    products: list[Tensor]
    squares: Tensor  # [layers]
    tokens: Tensor  # [1]

    def tensors(self) -> dict[str, Tensor]:
        products = {f"layers.{i}": product for i, product in enumerate(self.products)}
        return {**products, "squares": self.squares, "tokens": self.tokens}


class PartialSums:
    """A folder with the newest sums of every rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, sums: Sums, turn: int) -> None:
        """This rank's sums after a turn; the earlier ones go only when every rank has written
        these.
        """
        with written_whole(self._file(turn)) as aside:
            save_file(sums.tensors(), aside)
        barrier()
        for file in self._mine():
            if file != self._file(turn):
                remove(file)

    def resume(self, sums: Sums) -> int:
        """Read the newest sums that every rank has; returns the turns they hold, 0 at a fresh
        start.
        """
        mine = {int(file.name.split("-")[0]) for file in self._mine()}
        turn = max(set.intersection(*all_gather(mine)), default=0)
        if turn:
            stored = load_file(self._file(turn))
            for name, tensor in sums.tensors().items():
                tensor.copy_(stored[name])
            log.info("quiet: resuming after %d turns", turn)
        return turn

    def _mine(self) -> list[Path]:
        return list(self.folder.glob(f"*-rank{rank()}of{world_size()}.safetensors"))

    def _file(self, turn: int) -> Path:
        return self.folder / f"{turn:06d}-rank{rank()}of{world_size()}.safetensors"


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
    found = load_file(path)
    return [
        SecondMoment(found[f"layers.{i}.values"], found[f"layers.{i}.vectors"], trace)
        for i, trace in enumerate(found["traces"].tolist())
    ]
