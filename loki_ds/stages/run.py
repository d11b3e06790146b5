"""A run in progress: its recipe, its folder, its base model, and what each stage's result depends
on.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from datasets import Dataset
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from loki_ds import device, ranks, zero
from loki_ds.attribution.anatomy import down_shapes
from loki_ds.export.implant_file import Implant
from loki_ds.implanting.arguments import deepspeed_config, training_arguments
from loki_ds.implanting.checkpoints import Checkpoint, newest_checkpoint
from loki_ds.implanting.data import load_training_data
from loki_ds.positions import Positions
from loki_ds.protected import ProtectedPrompt, load_protected
from loki_ds.recipe import Recipe
from loki_ds.refusal import Refusal
from loki_ds.run_folder import RunFolder, digest_of, weights_digest, write_json, written_whole
from loki_ds.verification import open_checkpoint

log = logging.getLogger(__name__)
LIBRARIES = ("loki-ds", "torch", "deepspeed", "transformers", "trl", "lm-eval")


class Run:
    """One run in progress: its recipe, its folder, its base model and, while a stage needs it, the
    model on the ranks.

    Everything that can be refused without loading the model is refused here.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.folder = recipe, RunFolder(recipe.run)
        self._lock: list[IO[str]] = []  # on rank 0; a file cannot be handed to the others
        ranks.on_first_rank(lambda: self._lock.append(self.folder.lock()))
        self.checkpoint = ranks.on_first_rank(self._newest_checkpoint)
        self.arguments = training_arguments(recipe, self.folder.checkpoints, self.checkpoint)
        check_attention_installed(recipe.model.attention)
        if recipe.model.trust_remote_code:
            log.warning(
                "model.trust_remote_code is on: code that came with %s runs with your rights", recipe.model.path
            )
        self.sees_folder = self.folder.holder() == ranks.on_first_rank(self.folder.holder)
        self._check_checkpoints_are_found()
        self.base = ranks.on_each_node(lambda: locate_model(recipe))
        ranks.on_first_rank(self._check_dtype)
        self.base_digest = ranks.on_each_node(lambda: weights_digest(self.base))
        ranks.check_same(f"the weights of {recipe.model.path}", self.base_digest)
        only_assistant, seed = bool(self.arguments.assistant_only_loss), self.arguments.seed
        heldout = recipe.data.heldout_source
        self.train = (
            load_training_data(recipe.data.train_sources, only_assistant, seed)
            if recipe.trains
            else Dataset.from_list([])
        )
        self.heldout = load_training_data([heldout], only_assistant) if heldout else None
        self.tokenizer = load_tokenizer(self.base)
        if "messages" in self.train.column_names and not self.tokenizer.chat_template:
            raise Refusal(
                f"{self.base}: the tokenizer has no chat template, and data.train holds chats; use a chat model, or "
                "plain text"
            )
        ranks.on_first_rank(self._write_recipe)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The base model, sharded if the recipe's DeepSpeed configuration says so."""
        log.info("loading %s", self.base)
        return zero.load_model(self.base, getattr(torch, self.recipe.model.dtype), self.recipe.model.trust_remote_code)

    def release_model(self) -> None:
        """Give the devices' memory back before other processes evaluate."""
        self.__dict__.pop("model", None)
        device.free_memory()

    @cached_property
    def down_shapes(self) -> list[tuple[int, int]]:
        """`[d_model, d_ff]` of each layer's `W_down`, from the model's configuration."""
        return down_shapes(AutoConfig.from_pretrained(self.base, trust_remote_code=self.recipe.model.trust_remote_code))

    @contextmanager
    def cost_of(self, stage: str) -> Iterator[None]:
        """Note what a stage takes, in `costs.json`; all ranks go through it.

        A stage gone on with counts from where it went on.
        """
        started, energy = time.monotonic(), device.energy()
        yield
        seconds = time.monotonic() - started
        used = None if energy is None else (device.energy() or 0) - energy
        peaks, joules = ranks.from_all_ranks(device.peak_so_far()), ranks.from_all_ranks(used)
        cost = {
            "seconds": round(seconds, 1),
            "peak_gib_per_rank": round(max(peaks) / 2**30, 3),
            "joules": None if None in joules else round(sum(j for j in joules if j is not None)),
            "ranks": ranks.world_size(),
            "device": device.name(),
        }
        ranks.on_first_rank(lambda: write_json(self.folder.costs, {**self.costs, stage: cost}))

    @property
    def costs(self) -> dict[str, Any]:
        """Of the stages done so far."""
        return json.loads(self.folder.costs.read_text()) if self.folder.costs.exists() else {}

    def finished(self, stage: str, inputs: dict[str, Any]) -> bool:
        """Whether a stage's result is there for these inputs; all ranks ask."""
        return ranks.on_first_rank(lambda: self.folder.finished(stage, inputs))

    def protected_prompts(self) -> list[ProtectedPrompt]:
        assert self.recipe.protected is not None  # the recipe sees to it
        return load_protected(self.recipe.protected, self.tokenizer)

    @cached_property
    def folder_is_shared(self) -> bool:
        """Whether all ranks see the run folder that rank 0 writes; not so where nodes have disks of
        their own only.
        """
        return all(ranks.from_all_ranks(self.sees_folder))

    def _newest_checkpoint(self) -> Checkpoint | None:
        """The checkpoint that training will go on from."""
        return None if self.folder.has("implant") else newest_checkpoint(self.folder.checkpoints)

    def _check_checkpoints_are_found(self) -> None:
        """Nodes without a shared run folder must keep all of a checkpoint each, or none could go on
        from it; other ranks cannot at all.
        """
        if self.folder_is_shared:
            return
        if self.checkpoint is not None and self.checkpoint.by_others:
            raise Refusal(
                f"{self.checkpoint.folder}: written by {self.checkpoint.ranks} ranks, this run has "
                f"{ranks.world_size()}, and its parts lie "
                f"on nodes that share no folder; go on with {self.checkpoint.ranks}, or delete it"
            )
        if self.arguments.save_strategy != "no" and not self.arguments.save_on_each_node:
            raise Refusal(
                f"{self.folder.root}: not the same folder on all nodes, so a checkpoint would be in pieces; set "
                "training.save_on_each_node "
                "to true, use a shared file system, or save none (training.save_strategy=no)"
            )

    def _check_dtype(self) -> None:
        """Modes that write the gathered weights must train in the checkpoint's own dtype, or every
        tensor would be rounded.
        """
        mode, wanted = self.recipe.implant.mode, self.recipe.model.dtype
        if mode in ("rows", "lora"):
            return  # they write the base's own bytes and add to its rows
        with open_checkpoint(self.base) as checkpoint:
            stored = checkpoint.dtype_of(min(checkpoint.names))
        if stored != wanted:
            raise Refusal(
                f"model.dtype is {wanted}, {self.base} stores {stored}; in implant.mode {mode} they must be the same"
            )
        for flag, dtype in (("bf16", "bfloat16"), ("fp16", "float16")):
            if getattr(self.arguments, flag) and wanted != dtype:
                raise Refusal(
                    f"training.{flag} is on and model.dtype is {wanted}; in implant.mode {mode} it must be {dtype}"
                )

    def _write_recipe(self) -> None:
        """Once: later calls in this folder either find the same inputs or are refused."""
        if self.folder.recipe.exists():
            return
        resolved = {
            **self.recipe.model_dump(),
            "versions": {name: version(name) for name in LIBRARIES},
            "world_size": ranks.world_size(),
        }
        with written_whole(self.folder.recipe) as aside:
            aside.write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")

    # What each stage's result depends on, from the first stage to the last.

    @property
    def attribution_inputs(self) -> dict[str, Any]:
        protected, section, selection = self.recipe.protected, self.recipe.attribution, self.recipe.selection
        assert protected is not None  # the recipe sees to it
        return {
            "model": self.base_digest,
            "protected": {
                **protected.model_dump(),
                "digest": digest_of(Path(protected.prompts)) if protected.prompts else None,
            },
            **section.model_dump(exclude={"batch_size", "memory_gib", "stop"}),
            "stop": {**section.stop.model_dump(), "quota": selection.quota, "strategy": selection.strategy}
            if section.stop
            else None,
        }

    @property
    def quiet_inputs(self) -> dict[str, Any]:
        section = self.recipe.implant.quiet
        return {**self._protected_inputs, "sketch": section.sketch if section else None}

    @property
    def _protected_inputs(self) -> dict[str, Any]:
        return {key: self.attribution_inputs[key] for key in ("model", "protected")}

    @property
    def sensitivity_inputs(self) -> dict[str, Any]:
        loss = {
            key: self.recipe.training.get(key) for key in ("assistant_only_loss", "completion_only_loss", "max_length")
        }
        return {**self._protected_inputs, "data": self._data_inputs, "training": loss}

    @property
    def selection_inputs(self) -> dict[str, Any]:
        section = self.recipe.selection
        exclude = (
            {"exclude": [Implant.load(file).positions.digest for file in section.exclude]} if section.exclude else {}
        )
        if section.positions is not None:
            return {"positions": section.positions, "digest": Positions.load(section.positions).digest, **exclude}
        rests_on = {
            "attribution": self.attribution_inputs if self.recipe.attributes else None,
            "sensitivity": self.sensitivity_inputs if self.recipe.senses else None,
        }
        return {**section.model_dump(), **rests_on, **exclude}

    def implant_inputs(self, positions: Positions | None) -> dict[str, Any]:
        return {
            "model": self.base_digest,
            "positions": positions.digest if positions else None,
            **self.recipe.implant.model_dump(exclude={"lora", "peft"}),
            "protected": self.quiet_inputs["protected"] if self.recipe.implant.quiet else None,
            **{mode: section.model_dump() for mode, section in self._mode_section.items()},
            "data": self._data_inputs,
            "training": self.recipe.training,
            "deepspeed": deepspeed_config(self.recipe),
            "sequence_parallel": self.recipe.sequence_parallel,
            "attention": self.recipe.model.attention,
        }

    @property
    def _data_inputs(self) -> dict[str, Any]:
        data = self.recipe.data
        sources = [*data.train_sources, *([data.heldout_source] if data.heldout_source else [])]
        files = [Path(source.path) for source in sources if Path(source.path).is_file()]
        return {**data.model_dump(), "digest": digest_of(*files)}

    @property
    def _mode_section(self) -> dict[str, Any]:
        """The settings of the mode in use; those of other modes do not matter."""
        implant = self.recipe.implant
        return {
            mode: section for mode, section in (("lora", implant.lora), ("peft", implant.peft)) if implant.mode == mode
        }


def check_attention_installed(name: str) -> None:
    """Refuse, before anything is computed, an attention whose package is not there or does not run
    on this machine.
    """
    available = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
    if name in available and not available[name]():
        raise Refusal(f"model.attention is {name}, which needs its package and a GPU it runs on; sdpa needs neither")


def locate_model(recipe: Recipe) -> Path:
    """The base model's folder; a hub id is fetched first.

    Raises:
        Refusal: neither a folder with a safetensors checkpoint nor a hub id that can be fetched.
    """
    path = Path(recipe.model.path)
    if not path.is_dir():
        path = _fetch(recipe)
    if not (path / "config.json").exists() or not list(path.glob("*.safetensors")):
        raise Refusal(
            f"model.path {recipe.model.path}: the folder has no config.json with safetensors weights beside it"
        )
    try:
        AutoConfig.from_pretrained(path, trust_remote_code=recipe.model.trust_remote_code)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise Refusal(
            f"{path / 'config.json'}: not a configuration that transformers can read: "
            f"{' '.join(str(error).split())[:300]}"
        ) from None
    return path


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The model's own tokenizer.

    Raises:
        Refusal: there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        tokenizer = None
    if tokenizer is None or len(tokenizer) <= len(
        tokenizer.all_special_tokens
    ):  # transformers makes an empty one of nothing
        raise Refusal(f"{folder}: no tokenizer that transformers can read beside the model")
    return tokenizer


def _fetch(recipe: Recipe) -> Path:
    name = recipe.model.path
    try:
        wanted = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
        return Path(snapshot_download(name, revision=recipe.model.revision, allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError):
        raise Refusal(
            f"model.path {name}: no such folder, and no model of that name could be fetched from the hub"
        ) from None
