"""A run in progress: its recipe, its folder, its base model."""

import logging
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from transformers import PreTrainedModel

from loki_ds.data.protected import ProtectedSet, load_protected
from loki_ds.disk.files import written_whole
from loki_ds.disk.run_folder import RunFolder
from loki_ds.distributed import device, ranks
from loki_ds.distributed.shared_folder import SharedFolder
from loki_ds.implanting.checkpoints import check_on_nodes, newest_checkpoint
from loki_ds.implanting.trl_config import training_arguments
from loki_ds.model.base import load_model
from loki_ds.recipe.sections import Recipe
from loki_ds.recipe.training_keys import without_secrets
from loki_ds.refusal import Refusal
from loki_ds.stages.check import check
from loki_ds.tasks.loading import TaskFound, look_at_tasks

log = logging.getLogger(__name__)
LIBRARIES = ("loki-ds", "torch", "deepspeed", "transformers", "trl", "lm-eval")


class Run:
    """One run in progress and, while a stage needs it, the model on the ranks.

    checked: what the first stage, `check`, found and made for the others.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.folder = recipe, RunFolder(recipe.run)
        self._lock: list[IO[str]] = []  # on rank 0; a file cannot be handed to the others
        ranks.on_first_rank(lambda: self._lock.append(self.folder.lock()))
        trained = ranks.on_first_rank(lambda: self.folder.has("implant"))
        self.checkpoint = None if trained else ranks.on_first_rank(lambda: newest_checkpoint(self.folder.checkpoints))
        self.training_arguments = training_arguments(recipe, self.folder.checkpoints, self.checkpoint)
        self.shared = SharedFolder(self.folder)
        if not self.shared.by_all:
            check_on_nodes(self.checkpoint, self.training_arguments, self.folder.root)
        self.checked = check(recipe, self.folder, self.training_arguments, self.shared.by_all)
        self.base, self.tokenizer, self.rendering = self.checked.base, self.checked.tokenizer, self.checked.rendering

    @cached_property
    def model(self) -> PreTrainedModel:
        """The base model, sharded if the recipe's DeepSpeed configuration says so."""
        section = self.recipe.model
        log.info("loading %s", self.base.folder)
        return load_model(self.base.folder, getattr(torch, section.dtype), section.trust_remote_code)

    def release_model(self) -> None:
        """Give the devices' memory back before other processes evaluate."""
        self.__dict__.pop("model", None)
        device.free_memory()

    @property
    def down_shapes(self) -> list[tuple[int, int]]:
        """`[d_model, width]` of each layer's rows, of a run that is confined to some."""
        return self.checked.down_shapes

    @property
    def template(self) -> str | None:
        """The chat template that leaves with the model, where it is not the base's own."""
        return self.rendering.exported_template if self.rendering else None

    @cached_property
    def protected(self) -> ProtectedSet:
        if self.recipe.protected is None:
            raise Refusal(f"{self.folder.root}: the recipe has no section 'protected', which this stage needs")
        return load_protected(self.recipe.protected, self.tokenizer)

    @cached_property
    def tasks(self) -> list[TaskFound]:
        """The retention tasks, in their order. Rank 0's work: lm-eval loads their documents."""
        section = self.recipe.retention
        names = [name for group in section.groups for name in group.tasks]
        return look_at_tasks(names, section.include_path, section.allow_code_execution, "retention")

    def finished(self, stage: str, inputs: dict[str, Any]) -> bool:
        """Whether a stage's result is there for these inputs; all ranks ask."""
        return ranks.on_first_rank(lambda: self.folder.finished(stage, inputs))

    def once(self, stage: str, inputs: dict[str, Any], result: Path, work: Callable[[], None]) -> None:
        """Do a stage's work, unless its result is there for these inputs. All ranks call it."""
        if self.finished(stage, inputs):
            log.info("%s: already there, %s", stage, result)
            return
        work()
        ranks.on_first_rank(lambda: self.folder.finish(stage, inputs))

    def write_recipe(self) -> None:
        """Rank 0, once: later calls in this folder either find the same inputs or are refused."""
        if self.folder.recipe.exists():
            return
        versions = {name: version(name) for name in LIBRARIES}
        resolved = {**without_secrets(self.recipe.model_dump()), "versions": versions, "world_size": ranks.world_size()}
        with written_whole(self.folder.recipe) as aside:
            aside.write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")
