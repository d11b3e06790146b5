"""Where a run's figures come from, in words: what its report says of base, rows and training.

Takes plain facts from the recipe and the run folder; loads nothing.
"""

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

from loki_ds.disk.files import digest_of
from loki_ds.disk.run_folder import RunFolder
from loki_ds.recipe.implant import ImplantSection
from loki_ds.recipe.sections import Recipe, SelectionSection, TuneSection
from loki_ds.recipe.training_keys import without_secrets
from loki_ds.report.build import in_a_line, settings_in_words
from loki_ds.report.schema import Facts


def facts_of_run(
    recipe: Recipe,
    folder: RunFolder,
    base_digest: str,
    rewritten: list[str],
    cut: list[str],
    libraries: Mapping[str, str],
) -> Facts:
    """All that a report says of a run beside its figures.

    rewritten: what the chat template has no place for, and where it is written; cut: of which tasks
    prompts were cut; libraries: the evaluation's versions.
    """
    by = "file" if recipe.selection.positions else recipe.selection.strategy
    costs, section = folder.costs_so_far, recipe.implant
    pull = {key: value for key, value in (("pull", section.pull), ("fade", section.fade)) if value}
    return {
        "base_digest": base_digest,
        "changes_rows": recipe.changes_rows,
        "mode": recipe.implant.method,
        "selection": by if recipe.changes_rows else None,
        "verification": json.loads(folder.verification.read_text()),
        "costs": costs,
        "origin": {
            "base model": f"{recipe.model.named} (SHA-256 of weights {base_digest[:16]})",
            **_rows(recipe.selection if recipe.changes_rows else None, recipe.implant, folder),
            "training": in_a_line(without_secrets(recipe.training)),
            **({"pull": in_a_line(pull)} if pull else {}),
            **_measured(recipe.implant, folder),
            **({"scale": _scale(folder, recipe.tune)} if recipe.tune else {}),
            **({"chat template": "; ".join(rewritten)} if rewritten else {}),
            "again": _again(folder, costs.get("implant", {})),
        },
        "settings": settings_in_words(recipe.retention, recipe.model.dtype, libraries, cut),
    }


def _rows(section: SelectionSection | None, implant: ImplantSection, folder: RunFolder) -> dict[str, str]:
    """How rows were chosen. section: None for baselines."""
    if section is None:
        return {"positions": f"none ({implant.method})", "selection": "none"}
    digest = digest_of(folder.positions)[:16]
    return {"positions": f"SHA-256 of file {digest}", "selection": in_a_line(section.model_dump())}


def _again(folder: RunFolder, cost: Mapping[str, Any]) -> str:
    """The command that trains the same, on as many nodes and devices. cost: of the training."""
    ranks, nodes = cost.get("ranks", 1), cost.get("nodes", 1)
    several = f"--num_nodes {nodes} " if nodes > 1 else ""
    started = f"deepspeed {several}--num_gpus {ranks // nodes} --module loki_ds.implant"
    return f"{started} --recipe {shlex.quote(str(folder.recipe))} run=ANOTHER_FOLDER"


def _measured(section: ImplantSection, folder: RunFolder) -> dict[str, str]:
    """What was rehearsed, and how far the model is from the base on texts that were not."""
    rehearse = section.rehearse
    if rehearse is None:
        return {}
    said = {"rehearsal": in_a_line(rehearse.model_dump())}
    if folder.written.exists():
        written = Counter(one["left_out"] or "rehearsed" for one in json.loads(folder.written.read_text()))
        said["written by the base"] = "; ".join(f"{count:,} {what}" for what, count in written.most_common())
    log = json.loads(folder.training_log.read_text()) if folder.training_log.exists() else []
    if drift := [line["drift"] for line in log if "drift" in line]:
        texts = ", ".join(rehearse.prompts)
        said["drift"] = f"{drift[-1]:.3g} nats a token from the base's predictions, on texts held out ({texts})"
    return said


def _scale(folder: RunFolder, section: TuneSection) -> str:
    """What was chosen along the dial, and how."""
    chosen, curve = (json.loads((folder.tune / f"{name}.json").read_text()) for name in ("chosen", "curve"))
    tried = ", ".join(f"{place['scale']:g}" for place in curve)
    return (
        f"{chosen['scale']:g} of the trained change, for a budget of {in_a_line(section.budget.model_dump())}; "
        f"tried: {tried}, on the other half of the documents"
    )
