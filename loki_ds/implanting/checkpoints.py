"""Checkpoints of a training: which one is whole, what it was made from, and how another number of
ranks goes on from it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loki_ds.ranks import barrier, world_size
from loki_ds.refusal import Refusal
from loki_ds.run_folder import write_json
from loki_ds.zero import name_newest_everywhere

WHOLE = "whole.json"  # the mark of a checkpoint that every rank has written


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint and what its mark says."""

    folder: Path
    ranks: int  # that wrote it
    examples: int  # of one optimizer step, over all ranks
    made_from: dict[str, Any]  # the stage's inputs

    @property
    def by_others(self) -> bool:
        """Whether another number of ranks than these wrote it."""
        return self.ranks != world_size()

    def micro_steps(self, at_once: int) -> int:
        """How many micro-steps of `at_once` examples (over all ranks) make a step of as many as
        before.

        Raises:
            Refusal: no whole number does.
        """
        if self.examples % at_once:
            raise Refusal(
                f"{self.folder}: each of its steps has {self.examples} examples, and {world_size()} ranks, which "
                f"take {at_once} at once, "
                f"cannot make that many; go on with {self.ranks} ranks or another number that can, or delete it"
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


class MarkWhole(TrainerCallback):
    """Marks a checkpoint once every rank has written its part, so that a killed write is never gone
    on from.

    examples: of one optimizer step; made_from: the stage's inputs.
    """

    def __init__(self, examples: int, made_from: dict[str, Any]) -> None:
        self.examples, self.made_from = examples, made_from

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        barrier()
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        name_newest_everywhere(folder)
        if state.is_world_process_zero:
            write_json(folder / WHOLE, {"ranks": world_size(), "examples": self.examples, "made_from": self.made_from})
        barrier()
