"""What each stage's result depends on, from first to last; in JSON's types, without secrets.

A stage whose result is there for the same fingerprint is skipped. What changes no result stands in
none of them (`recipe.training_keys.changes_a_result`).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from loki_ds.data.render_settings import Rendering
from loki_ds.disk.files import digest_of
from loki_ds.export.implant_file import Implant
from loki_ds.implanting.rehearsal_rows import Text
from loki_ds.implanting.trl_config import deepspeed_config
from loki_ds.model.base import Base
from loki_ds.recipe.sections import DataSection, ProtectedSection, Recipe
from loki_ds.recipe.training_keys import changes_a_result, without_secrets
from loki_ds.retention.question import model_digest
from loki_ds.selection.positions import Positions

Fingerprint = dict[str, Any]
# Of `training`: what decides how many texts a training sees, which, and how long they may be.
COUNTED = (
    "seed max_steps num_train_epochs per_device_train_batch_size gradient_accumulation_steps packing max_length".split()
)


class Fingerprints:
    """Those of one recipe on one base."""

    def __init__(self, recipe: Recipe, base: Base) -> None:
        self.recipe, self.base = recipe, base

    @cached_property
    def model(self) -> Fingerprint:
        """What decides what the base computes: weights, files beside them, and the dtype."""
        return {"model": model_digest(self.base.folder, self.base.digest), "dtype": self.base.section.dtype}

    def attribution(self) -> Fingerprint:
        section = self.recipe.attribution.model_dump(exclude={"batch_size", "memory_gib"})
        return {**self._protected(self.recipe.protected), **section}

    def selection(self) -> Fingerprint:
        section = self.recipe.selection
        exclude = {"exclude": [Implant.load(file).positions.digest for file in section.exclude]}
        exclude = exclude if section.exclude else {}
        if section.positions is not None:
            return {"positions": section.positions, "digest": Positions.load(section.positions).digest, **exclude}
        scores = self.attribution() if self.recipe.needs_attribution else None
        return {**section.model_dump(), "attribution": scores, **exclude}

    def written(self, template: str | None) -> Fingerprint:
        """What decides what the base writes to be rehearsed. template: the text that trains."""
        recipe, section = self.recipe, self.recipe.implant.rehearse
        return {
            "template": template,
            "training": {key: recipe.training.get(key) for key in COUNTED},
            **self.model,
            "rehearse": section.model_dump(exclude={"top_k"}) if section else None,
            "data": data_fingerprint(recipe.data),
            "chat_template_args": recipe.retention.chat_template_args,
        }

    def predictions(self, texts: Sequence[Text], top_k: int) -> Fingerprint:
        """What decides the base's answers on texts."""
        of_texts = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
        return {**self.model, "texts": of_texts, "top_k": top_k}

    def implant(self, positions: Positions | None) -> Fingerprint:
        recipe, section = self.recipe, self.recipe.implant
        template = recipe.training.get("chat_template_path")  # the base's own stands beside its weights
        read = {key for key in ("lora", "peft") if key in section.kind.reads}
        training = {key: value for key, value in recipe.training.items() if changes_a_result(f"training.{key}")}
        return without_secrets(
            {
                **self.model,
                "positions": positions.digest if positions else None,
                **section.model_dump(exclude={"lora", "peft", "rehearse"} - read),
                **self._rehearsal(),
                "data": self._learned(),
                "training": training,
                **({"chat_template": digest_of(Path(template))} if template else {}),
                "deepspeed": deepspeed_config(recipe.deepspeed, section),
                "attention": recipe.model.attention,
            }
        )

    def _learned(self) -> Fingerprint:
        """The data that decides what is trained; what is held out does where it is evaluated."""
        data = self.recipe.data
        evaluated = self.recipe.training.get("eval_strategy", "no") != "no"
        return data_fingerprint(data if evaluated else data.model_copy(update={"heldout": None}))

    def retention(self, model_digest: str) -> Fingerprint:
        """What decides a report on the model with these weights."""
        section, tune = self.recipe.retention, self.recipe.tune
        own_tasks = digest_of(*map(Path, section.include_path)) if section.include_path else None
        return {
            "base": self.base.digest,
            "model": model_digest,
            "dtype": self.base.section.dtype,
            "own_tasks": own_tasks,
            **section.model_dump(exclude={"processes"}),
            **({"tune": tune.model_dump()} if tune else {}),
        }

    def tune(self, trained: Fingerprint | None) -> Fingerprint:
        """What decides the chosen scale: the training before it, the dial and what was asked."""
        asked = self.recipe.retention.model_dump(exclude={"processes"})
        tuned = self.recipe.tune.model_dump() if self.recipe.tune else None
        return {"implant": trained, "tune": tuned, "retention": asked, "dtype": self.base.section.dtype}

    def _protected(self, section: ProtectedSection | None) -> Fingerprint:
        """What decides whatever is computed on prompts of one source alone."""
        if section is None:
            return {**self.model, "protected": None}
        files = [Path(path) for path in (section.prompts, *section.include_path) if path]
        return {**self.model, "protected": {**section.model_dump(), "digest": digest_of(*files)}}

    def _rehearsal(self) -> Fingerprint:
        """What decides the rehearsed texts; the cut stands among the training's settings."""
        section = self.recipe.implant.rehearse
        if section is None:
            return {}
        given = [self._protected(texts)["protected"] for texts in self.recipe.rehearsed.values()]
        return {"rehearse": {**section.model_dump(), "given": given}}


def rendering_fingerprint(section: DataSection, rendering: Rendering) -> Fingerprint:
    """What decides the examples as tokens."""
    tokenizer = rendering.renderer.tokenizer
    return {
        "data": data_fingerprint(section),
        "tokenizer": hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest(),
        "template": rendering.template,
        "loss": asdict(rendering.loss),
    }


def data_fingerprint(section: DataSection) -> Fingerprint:
    files = [Path(source.path) for source in section.sources if Path(source.path).is_file()]
    return {**section.model_dump(), "files": {str(file): digest_of(file) for file in files}}
