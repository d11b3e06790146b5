"""What each stage's result depends on, from the first stage to the last; in JSON's types, without
secrets.

A stage whose result is there for the same inputs is skipped. What changes no result stands in none
of them (`recipe.changes_a_result`).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from loki_ds.data.render_settings import Rendering
from loki_ds.disk.files import digest_of
from loki_ds.disk.run_folder import RunFolder
from loki_ds.export.implant_file import Implant
from loki_ds.implanting.trl_config import deepspeed_config
from loki_ds.model.base import Base
from loki_ds.recipe.implant import QuietSection, RehearseSection
from loki_ds.recipe.sections import DataSection, ProtectedSection, Recipe
from loki_ds.recipe.training_keys import changes_a_result, without_secrets
from loki_ds.retention.question import model_digest
from loki_ds.selection.positions import Positions

Inputs = dict[str, Any]


@cache
def model_inputs(base: Base) -> Inputs:
    """Of whatever the base computes: weights, what stands beside them, and the dtype it runs in.
    Nearly every stage asks, and a base stays as it is.
    """
    return {"model": model_digest(base.folder, base.digest), "dtype": base.section.dtype}


def protected_inputs(section: ProtectedSection | None, base: Base) -> Inputs:
    """Of whatever is computed on the protected prompts alone."""
    if section is None:
        return {**model_inputs(base), "protected": None}
    files = [Path(path) for path in (section.prompts, section.include_path) if path]
    return {**model_inputs(base), "protected": {**section.model_dump(), "digest": digest_of(*files)}}


def attribution_inputs(recipe: Recipe, base: Base) -> Inputs:
    own = recipe.attribution.model_dump(exclude={"batch_size", "memory_gib"})
    return {**protected_inputs(recipe.protected, base), **own}


def selection_inputs(recipe: Recipe, base: Base) -> Inputs:
    section = recipe.selection
    exclude = {"exclude": [Implant.load(file).positions.digest for file in section.exclude]} if section.exclude else {}
    if section.positions is not None:
        return {"positions": section.positions, "digest": Positions.load(section.positions).digest, **exclude}
    return {
        **section.model_dump(),
        "attribution": attribution_inputs(recipe, base) if recipe.needs_attribution else None,
        **exclude,
    }


def quiet_inputs(protected: ProtectedSection | None, section: QuietSection, base: Base) -> Inputs:
    return {**protected_inputs(protected, base), "sketch": section.sketch}


def answers_inputs(texts: Sequence[Sequence[int]], section: RehearseSection, base: Base) -> Inputs:
    """Of the base's answers on texts."""
    of_texts = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return {**model_inputs(base), "texts": of_texts, "top_k": section.top_k}


def rehearsal_inputs(recipe: Recipe, base: Base) -> Inputs:
    """Of what is rehearsed; the cut stands among the training's settings."""
    section = recipe.implant.rehearse
    if section is None:
        return {}
    return {"rehearse": {**section.model_dump(), **protected_inputs(recipe.rehearsed, base)}}


def implant_inputs(recipe: Recipe, base: Base, positions: Positions | None) -> Inputs:
    implant = recipe.implant
    own = {key for key in ("lora", "peft") if key in implant.kind.reads}
    training = {key: value for key, value in recipe.training.items() if changes_a_result(f"training.{key}")}
    return without_secrets(
        {
            **model_inputs(base),
            "positions": positions.digest if positions else None,
            **implant.model_dump(exclude={"lora", "peft", "rehearse"} - own),
            **rehearsal_inputs(recipe, base),
            "protected": protected_inputs(recipe.protected, base)["protected"] if implant.quiet else None,
            "data": data_inputs(recipe.data),
            "training": training,
            **template_inputs(recipe),
            "deepspeed": deepspeed_config(recipe.deepspeed, implant),
            "sequence_parallel": recipe.sequence_parallel,
            "attention": recipe.model.attention,
        }
    )


def rendering_inputs(section: DataSection, rendering: Rendering) -> Inputs:
    """Of the examples as tokens."""
    tokenizer = rendering.renderer.tokenizer
    return {
        "data": data_inputs(section),
        "tokenizer": hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest(),
        "template": rendering.template,
        "loss": asdict(rendering.loss),
    }


def template_inputs(recipe: Recipe) -> Inputs:
    """Of the chat template, where it is a file of the recipe's; the base's own stands beside its
    weights.
    """
    path = recipe.training.get("chat_template_path")
    return {"chat_template": digest_of(Path(path))} if path else {}


def retention_inputs(recipe: Recipe, base_digest: str, own_digest: str) -> Inputs:
    section, dtype = recipe.retention, recipe.model.dtype
    own_tasks = digest_of(Path(section.include_path)) if section.include_path else None
    asked = section.model_dump(exclude={"processes"})
    tuned = {"tune": recipe.tune.model_dump()} if recipe.tune else {}
    return {"base": base_digest, "model": own_digest, "dtype": dtype, "own_tasks": own_tasks, **asked, **tuned}


def tune_inputs(recipe: Recipe, folder: RunFolder) -> Inputs:
    """Of the scale that was chosen: the training before it, the dial and what was asked."""
    asked = recipe.retention.model_dump(exclude={"processes"})
    tuned = recipe.tune.model_dump() if recipe.tune else None
    return {"implant": folder.inputs_of("implant"), "tune": tuned, "retention": asked, "dtype": recipe.model.dtype}


def data_inputs(section: DataSection) -> Inputs:
    files = [Path(source.path) for source in section.sources if Path(source.path).is_file()]
    return {**section.model_dump(), "digest": digest_of(*files)}
