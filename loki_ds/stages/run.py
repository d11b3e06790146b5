"""A run in progress: its recipe, its folder, its base model."""

import logging
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from datasets import Dataset
from transformers import PreTrainedModel

from loki_ds import device, ranks
from loki_ds.examples.choice import Rendering, make_rendering
from loki_ds.examples.whole import Kept
from loki_ds.export.products import Base
from loki_ds.implanting.arguments import training_arguments
from loki_ds.implanting.checkpoints import check_on_nodes, newest_checkpoint
from loki_ds.implanting.supported import check_dtype
from loki_ds.model.anatomy import down_shapes
from loki_ds.model.base import check_attention_installed, load_configuration, load_tokenizer, locate_model
from loki_ds.protected import ProtectedSet, load_protected
from loki_ds.recipe import ModelSection, Recipe
from loki_ds.recipe_keys import without_secrets
from loki_ds.refusal import Refusal
from loki_ds.run_folder import RunFolder, weights_digest, written_whole
from loki_ds.shared_folder import SharedFolder
from loki_ds.stages.inputs import rendering_inputs
from loki_ds.zero.model import load_model

log = logging.getLogger(__name__)
NONE = Dataset.from_list([])
LIBRARIES = ("loki-ds", "torch", "deepspeed", "transformers", "trl", "lm-eval")


class Run:
    """One run in progress and, while a stage needs it, the model on the ranks.

    Everything that can be refused without loading the model is refused here.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.folder = recipe, RunFolder(recipe.run)
        self._lock: list[IO[str]] = []  # on rank 0; a file cannot be handed to the others
        ranks.on_first_rank(lambda: self._lock.append(self.folder.lock()))
        trained = ranks.on_first_rank(lambda: self.folder.has("implant"))
        self.checkpoint = None if trained else ranks.on_first_rank(lambda: newest_checkpoint(self.folder.checkpoints))
        self.training_arguments = training_arguments(recipe, self.folder.checkpoints, self.checkpoint)
        check_attention_installed(recipe.model.attention)
        self.shared = SharedFolder(self.folder)
        if not self.shared.by_all:
            check_on_nodes(self.checkpoint, self.training_arguments, self.folder.root)
        self.base = locate_base(recipe.model)
        ranks.on_first_rank(
            lambda: check_dtype(self.base.folder, recipe.model.dtype, recipe.implant, self.training_arguments)
        )
        self.tokenizer = load_tokenizer(self.base.folder, recipe.model.trust_remote_code)
        self.examples, self.heldout = NONE, None
        self.rendering: Rendering | None = None
        if recipe.implant.kind.trains:
            self.rendering = make_rendering(recipe.data, recipe.training, self.tokenizer, self.base.folder)
            self.examples, self.heldout = self._rendered_examples(self.rendering)
        ranks.on_first_rank(self._write_recipe)

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

    @cached_property
    def down_shapes(self) -> list[tuple[int, int]]:
        """`[d_model, d_ff]` of each layer's `W_down`, from the model's configuration."""
        return down_shapes(load_configuration(self.base.folder, self.recipe.model.trust_remote_code))

    @cached_property
    def protected(self) -> ProtectedSet:
        if self.recipe.protected is None:
            raise Refusal(f"{self.folder.root}: the recipe has no section 'protected', which this stage needs")
        return load_protected(self.recipe.protected, self.tokenizer)

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

    def _rendered_examples(self, rendering: Rendering) -> tuple[Dataset, Dataset | None]:
        """The examples as tokens, made once on each node and mapped by its ranks."""
        recipe, kept = self.recipe, Kept(self.folder.examples)
        inputs = rendering_inputs(recipe.data, rendering)
        config = load_configuration(self.base.folder, recipe.model.trust_remote_code)
        vocabulary = config.get_text_config().vocab_size
        counts = ranks.on_each_node(
            lambda: kept.render(recipe.data, rendering.renderer, rendering.loss.cut, vocabulary, inputs)
        )
        for line in [*rendering.said, *(one.said() for one in counts)]:
            log.info("check: %s", line)
        return kept.load(recipe.data, self.training_arguments.seed)

    def _write_recipe(self) -> None:
        """Once: later calls in this folder either find the same inputs or are refused."""
        if self.folder.recipe.exists():
            return
        versions = {name: version(name) for name in LIBRARIES}
        resolved = {**without_secrets(self.recipe.model_dump()), "versions": versions, "world_size": ranks.world_size()}
        with written_whole(self.folder.recipe) as aside:
            aside.write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")


def locate_base(section: ModelSection) -> Base:
    """The base model on every node, the same on all. All ranks call it."""
    folder = ranks.on_each_node(lambda: locate_model(section))
    digest = ranks.on_each_node(lambda: weights_digest(folder))
    ranks.check_same(f"the weights of {section.path}", digest)
    return Base(folder, digest, section)
