"""Room on disk for what a run will write: the result, and the checkpoints that lie there at once.

"At least": small files are not counted, nor what PEFT trains.
"""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.training_args import OptimizerNames
from trl import SFTConfig

from loki_ds.checking.base import BaseFound
from loki_ds.checking.findings import GIB
from loki_ds.disk.run_folder import RunFolder
from loki_ds.distributed.zero.states import beside_the_model
from loki_ds.implanting.trl_config import TrainingShape, deepspeed_config
from loki_ds.recipe.sections import Recipe
from loki_ds.refusal import Refusal
from loki_ds.selection.select import planned_positions


@dataclass(frozen=True)
class Room:
    """What a run of a recipe will write, on a base and by TRL's settings."""

    recipe: Recipe
    base: BaseFound
    arguments: SFTConfig

    def look_at(self, folder: RunFolder, examples: int, ranks: int) -> tuple[str, str]:
        """Whether it has room there. examples: that train, if any.

        Raises:
            Refusal: too little is free.
        """
        shape = TrainingShape.of(self.recipe.training, self.recipe.model.dtype)
        steps = shape.steps(self.recipe.training, examples, ranks) if examples else 0
        said = check_room(folder.root, self.wanted(folder, steps))
        if steps and self.arguments.save_strategy == "no":
            said += "; no checkpoints, so a killed training starts anew (training.save_strategy)"
        return "run folder", said

    def wanted(self, folder: RunFolder, steps: int) -> float:
        """Bytes that are still to be written, at least.

        steps: of the whole training; 0 where nothing trains.
        """
        if folder.model.exists():
            return 0
        room = float(self.base.size)
        if steps:
            there = sum(file.stat().st_size for file in folder.checkpoints.rglob("*") if file.is_file())
            room += max(0.0, self.checkpoint() * checkpoints_at_once(self.arguments, steps) - there)
        if self.recipe.tune:  # a scale's model before it takes the run's place; a whole model as it was trained
            room += self.base.size * (1 if self.recipe.changes_rows else 2)
        return room

    def checkpoint(self) -> float:
        """Bytes of one checkpoint, at least."""
        section, parameters = self.recipe.implant, self.base.parameters
        mode, bytes_per_number = section.kind, getattr(torch, self.recipe.model.dtype).itemsize
        model = 0 if mode.leaves == "adapter" else bytes_per_number * parameters
        if self.arguments.save_only_model:
            return model
        trained, deepspeed = self._trained(), deepspeed_config(self.recipe.deepspeed, section)
        stage = int(deepspeed["zero_optimization"].get("stage", 0)) if deepspeed else None
        frozen = 0 if mode.leaves == "adapter" else parameters - (0 if mode.adds_parameters else trained)
        optimizer = OptimizerNames(self.arguments.optim).value
        return model + beside_the_model(frozen, trained, bytes_per_number, stage, optimizer)

    def _trained(self) -> int:
        """Parameters that train; of PEFT's none are counted."""
        mode, blocks = self.recipe.implant.kind, self.base.blocks
        if mode.leaves == "adapter":
            return 0
        if mode.trains_everything:
            return self.base.parameters
        if mode.masks:
            return sum(block.rows * block.width for block in blocks)
        planned = planned_positions(self.recipe.selection, blocks).rows
        rows = [(len(chosen), block.width) for chosen, block in zip(planned, blocks, strict=True)]
        if "lora" in mode.reads:
            return sum(self.recipe.implant.lora.rank * (k + d_ff) for k, d_ff in rows)
        return sum(k * d_ff for k, d_ff in rows)


def checkpoints_at_once(arguments: SFTConfig, steps: int) -> int:
    """How many will lie there: a new one is written before the oldest goes."""
    epochs = arguments.num_train_epochs if arguments.max_steps <= 0 else 1
    every = arguments.save_steps if arguments.save_steps >= 1 else max(1, math.ceil(arguments.save_steps * steps))
    saves = {"no": 0, "steps": math.ceil(steps / every), "epoch": math.ceil(epochs)}.get(arguments.save_strategy, 1)
    limit = arguments.save_total_limit
    return min(saves, limit + 1) if limit else saves


def check_room(folder: Path, wanted: float) -> str:
    """Refuse a disk without so many bytes; in words where there are.

    Raises:
        Refusal: too little is free.
    """
    if (free := shutil.disk_usage(folder).free) < wanted:
        raise Refusal(
            f"{folder}: {free / GIB:.2f} GiB are free there, the run takes at least {wanted / GIB:.2f}; make room, use "
            "run=FOLDER, or keep fewer checkpoints (training.save_total_limit)"
        )
    return f"{folder}: takes at least {wanted / GIB:.2f} of {free / GIB:.1f} GiB free"
