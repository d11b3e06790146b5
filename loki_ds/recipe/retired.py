"""What recipes could say once: each has one sentence that says what to use instead.

A run folder's own recipe of an older version holds every key. Where a retired one says nothing
(null, or what is done in any case), it is passed over.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loki_ds.refusal import Refusal

# By dotted key: the value that says nothing, and what to use instead.
KEYS: dict[str, tuple[Any, str]] = {
    "sequence_parallel": (
        1,
        "activation checkpointing, offload (launch/) and packing serve long sequences, each rank with its own",
    ),
    "retention.backend": ("hf", "models are asked through transformers, on every device of the node"),
    "attribution.stop": (None, "attribution goes over all protected prompts; protected.per_subject takes fewer"),
    "implant.quiet": (
        None,
        "implant.fade with implant.rehearse.prompts={boundary: 0.2} keeps more, in every mode and with experts",
    ),
    "implant.frozen_inputs": (None, "it kept no more than rows alone; implant.fade keeps more in every mode"),
    "implant.rehearse.stop_at_drift": (None, "the drift foretells losses worst; training.max_steps ends earlier"),
    "implant.rehearse.share": (0.05, "each of implant.rehearse.prompts has its own, as {protected: 0.05}"),
    "implant.rehearse.loss": (
        "kl",
        "the base's predictions are learned; texts to be learned themselves are a source of data.train with a weight",
    ),
}
BY_SENSITIVITY = "it kept no more than rows drawn by chance; say layer_balanced, layer_smallest or random"
VALUES = {("selection.strategy", name): BY_SENSITIVITY for name in ("layer_sensitivity", "layer_gain")}


def drop_retired(raw: dict[str, Any], origin: Callable[[str], Path | str]) -> None:
    """Take retired keys that say nothing out of a recipe's values.

    origin: the file, or the override, that a dotted key comes from.

    Raises:
        Refusal: one that says something.
    """
    for key, (nothing, instead) in KEYS.items():
        section, name = _section_of(raw, key)
        if name in section and (value := section.pop(name)) != nothing:
            raise Refusal(f"{origin(key)}: {key} is {value!r}, which is retired: {instead}")
    for (key, value), instead in VALUES.items():
        section, name = _section_of(raw, key)
        if section.get(name) == value:
            raise Refusal(f"{origin(key)}: {key} is {value}, which is retired: {instead}")
    section, name = _section_of(raw, "implant.rehearse.prompts")
    if isinstance(prompts := section.get(name), str):
        raise Refusal(f"{origin('implant.rehearse.prompts')}: {name} is {prompts!r}, allowed is {{{prompts}: SHARE}}")
    section, name = _section_of(raw, "tune.scales")
    scales = section.get(name)
    if isinstance(scales, list) and any(isinstance(scale, list) for scale in scales):
        raise Refusal(
            f"{origin('tune.scales')}: tune.scales is {scales}, and scales by layer are retired: give shares of the "
            "whole change, as [0.25, 0.5, 1]"
        )


def _section_of(raw: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The section that holds a dotted key, empty where there is none, and the key's name there."""
    *parents, name = key.split(".")
    for parent in parents:
        part = raw.get(parent)
        raw = part if isinstance(part, dict) else {}
    return raw, name
