"""A run in progress: its recipe, its folder as the ranks see it, the model that they hold, and the
one way in which a stage is done once.
"""

import logging
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from typing import IO, Any, TypeVar

import torch
import yaml
from transformers import PreTrainedModel

from loki_ds.disk.files import written_whole
from loki_ds.disk.run_folder import RunFolder
from loki_ds.distributed import device, ranks
from loki_ds.distributed.shared_folder import SharedFolder
from loki_ds.model.base import Base, load_model
from loki_ds.recipe.sections import Recipe
from loki_ds.recipe.training_keys import without_secrets
from loki_ds.retention.messages import Half
from loki_ds.retention.question import Question, tasks_of
from loki_ds.tasks.loading import TaskFound

log = logging.getLogger(__name__)
LIBRARIES = ("loki-ds", "torch", "deepspeed", "transformers", "trl", "lm-eval")
Result = TypeVar("Result")


class Run:
    """One run in progress and, while a stage needs it, the base model on the ranks. All ranks make
    one together; it holds the folder for them until the process ends.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.folder = recipe, RunFolder(recipe.run)
        self._lock: list[IO[str]] = []  # on rank 0; a file cannot be handed to the others
        ranks.on_first_rank(lambda: self._lock.append(self.folder.lock()))
        self.shared = SharedFolder(self.folder)
        self._model: PreTrainedModel | None = None

    def model(self, base: Base) -> PreTrainedModel:
        """The base model, sharded if the recipe's DeepSpeed configuration says so; loaded once."""
        if self._model is None:
            log.info("loading %s", base.folder)
            dtype = getattr(torch, base.section.dtype)
            self._model = load_model(base.folder, dtype, base.section.trust_remote_code)
        return self._model

    def release_model(self) -> None:
        """Give the devices' memory back before other processes evaluate."""
        self._model = None
        device.free_memory()

    @cached_property
    def tasks(self) -> list[TaskFound]:
        """The retention tasks, in their order. Rank 0's work: lm-eval loads their documents."""
        return tasks_of(self.recipe.retention)

    def question(self, half: Half | None = None) -> Question:
        """What its models are asked. half: of the documents, where a scale is chosen."""
        return Question(self.recipe.model, self.recipe.retention, self.tasks, half)

    def once(
        self,
        stage: str,
        inputs: dict[str, Any],
        make: Callable[[], Result],
        save: Callable[[Result], None] = lambda _: None,
        load: Callable[[], Result] | None = None,
    ) -> Result:
        """What a stage makes, unless its result is there for these inputs. All ranks call it.

        Args:
            make: on all ranks; where some do not see the folder, also to have again what is there.
            save: on rank 0, of what was made.
            load: what is there; None where later stages read it themselves.

        Raises:
            Refusal: a result is there, made from other inputs.
        """
        there = ranks.on_first_rank(lambda: self.folder.finished(stage, inputs))
        if there:
            log.info("%s: already there", stage)
            if load is None:
                return None  # type: ignore[return-value]  # what is made leaves nothing to hand on
            if self.shared.by_all:
                return load()
        result = make()
        ranks.on_first_rank(lambda: save(result))
        if not there:
            ranks.on_first_rank(lambda: self.folder.finish(stage, inputs))
        return result

    def write_recipe(self) -> None:
        """Rank 0, once: later calls in this folder either find the same inputs or are refused."""
        versions = {name: version(name) for name in LIBRARIES}
        if self.folder.recipe.exists():
            old = yaml.safe_load(self.folder.recipe.read_text(encoding="utf-8")).get("versions") or {}
            others = [f"{name} {old[name]}, now {now}" for name, now in versions.items() if old.get(name, now) != now]
            if others:
                log.warning("%s was begun with %s; its stages may not agree", self.folder.root, "; ".join(others))
            return
        resolved = {**without_secrets(self.recipe.model_dump()), "versions": versions, "world_size": ranks.world_size()}
        with written_whole(self.folder.recipe) as aside:
            aside.write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")
