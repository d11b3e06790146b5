"""Checkpoints of a training: which is whole, what it was made from, who can resume from it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from loki_ds.disk.files import write_json
from loki_ds.distributed.ranks import barrier, world_size
from loki_ds.distributed.zero.checkpoints import name_newest_everywhere
from loki_ds.refusal import Refusal

WHOLE = "whole.json"  # the mark of a checkpoint that every rank has written


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint and what its mark says."""

    folder: Path
    ranks: int  # that wrote it
    examples: int  # of one optimizer step, over all ranks
    inputs: dict[str, Any]  # of the stage

    @property
    def other_world_size(self) -> bool:
        """Whether another number of ranks than these wrote it."""
        return self.ranks != world_size()

    def check_resumable(self, settings: dict[str, Any]) -> None:
        """Refuse trainings that cannot resume from here. settings: as the recipe has them."""
        if self.other_world_size and settings.get("load_best_model_at_end"):
            raise Refusal(
                f"{self.folder}: written by {self.ranks} ranks, this run has {world_size()}; with "
                f"training.load_best_model_at_end only {self.ranks} can resume, for the best one may be of that time; "
                "do so, or delete it"
            )

    def micro_steps(self, at_once: int) -> int:
        """How many micro-steps of `at_once` examples over all ranks make a step as large as before.

        Raises:
            Refusal: no whole number does.
        """
        if self.examples % at_once:
            raise Refusal(
                f"{self.folder}: each of its steps has {self.examples} examples, and {world_size()} ranks, which take "
                f"{at_once} at once, cannot make that many; resume with {self.ranks} ranks or another number that "
                "can, or delete it"
            )
        return self.examples // at_once


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint in a folder of them; None at a fresh start.

    Raises:
        Refusal: its mark cannot be read.
    """
    marks = sorted(folder.glob(f"checkpoint-*/{WHOLE}"), key=lambda mark: int(mark.parent.name.split("-")[1]))
    if not marks:
        return None
    try:
        return Checkpoint(marks[-1].parent, **json.loads(marks[-1].read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise Refusal(f"{marks[-1]}: not the mark of a checkpoint; delete {marks[-1].parent}") from None


def check_on_nodes(checkpoint: Checkpoint | None, arguments: TrainingArguments, root: Path) -> None:
    """Nodes that share no run folder must keep all of a checkpoint each, or none could resume from
    it; another world size cannot at all.
    """
    if checkpoint is not None and checkpoint.other_world_size:
        raise Refusal(
            f"{checkpoint.folder}: written by {checkpoint.ranks} ranks, this run has {world_size()}, and its parts lie "
            f"on nodes that share no folder; resume with {checkpoint.ranks}, or delete it"
        )
    if arguments.save_strategy != "no" and not arguments.save_on_each_node:
        raise Refusal(
            f"{root}: not the same folder on all nodes, so a checkpoint would be in pieces; set "
            "training.save_on_each_node to true, use a shared file system, or save none (training.save_strategy=no)"
        )


class MarkWhole(TrainerCallback):
    """Marks a checkpoint once every rank has written its part, so that a killed write is never
    resumed from; older ones go only then (the trainer's own limit deletes them before).

    examples: of a step; inputs: the stage's; limit: checkpoints that stay, None for all.
    """

    def __init__(self, examples: int, inputs: dict[str, Any], limit: int | None) -> None:
        self.examples, self.inputs, self.limit = examples, inputs, limit

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        barrier()
        checkpoints = str(args.output_dir)
        if not args.save_only_model:  # without the optimizer's state nothing resumes from it
            self._mark(Path(checkpoints) / f"checkpoint-{state.global_step}", state.is_world_process_zero)
        if args.should_save:
            rotate_checkpoints(checkpoints, self.limit, state.best_model_checkpoint, use_mtime=True)

    def _mark(self, folder: Path, first: bool) -> None:
        name_newest_everywhere(folder)
        if first:
            write_json(folder / WHOLE, {"ranks": world_size(), "examples": self.examples, "inputs": self.inputs})
        barrier()
