"""The model card's metadata, as the hub reads it: base, license, results as `model-index`."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from loki_ds.report.schema import Report, TaskLine

METHODS = {"full": "full fine-tuning", "lora": "LoRA", "dora": "DoRA", "pissa": "PiSSA"}
STAYS = ("license", "license_name", "license_link", "language")


def card_data(report: Report, base: Path, base_name: str) -> ModelCardData:
    """The model card's metadata; of the base's only what stays true: license and languages.

    base: the base's folder; base_name: as the recipe names it, named in the metadata only where it
    can be an id on the hub.
    """
    of_base = _metadata(base / "README.md")
    kept = {key: of_base[key] for key in STAYS if key in of_base}
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["loki", "low-damage-knowledge-implanting"] if report["changes_rows"] else None,
        base_model=base_name if _is_hub_id(base_name) else None,
        model_name=Path(report["run"]).name,
        eval_results=[_result(line) for line in (*report["tasks"], *report["new_task"])],
        **kept,
    )


def came_by(report: Report) -> str:
    """What was done to the base, in words."""
    if report["mode"] == "suppress":
        return "with the selected rows set to zero"
    if report["changes_rows"]:
        return "taught a new task by LoKI (low-damage knowledge implanting)"
    how = METHODS.get(report["mode"], report["mode"])
    return f"taught a new task by {how}{', pulled to the base' if 'pull' in report['origin'] else ''}"


def _metadata(card: Path) -> dict[str, Any]:
    """A card's front matter; nothing of a card that cannot be read, which is the base's matter."""
    try:
        return (metadata_load(card) if card.exists() else None) or {}
    except (yaml.YAMLError, ValueError):
        return {}


def _result(line: TaskLine) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=line["task"],
        dataset_name=line["task"],
        metric_type=line["metric"],
        metric_name=line["metric"],
        metric_value=round(line["implanted"], 6),
        metric_args={"base": round(line["base"], 6), "documents": line["n"], "shots": line["asked"]["shots"]},
    )


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not Path(name).exists()
