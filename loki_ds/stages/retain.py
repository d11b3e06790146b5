"""Stage 4: base and implanted model through the same lm-eval tasks, paired, in `report/`."""

import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any

from loki_ds import device, ranks
from loki_ds.recipe import TaskGroup
from loki_ds.refusal import Refusal
from loki_ds.report import build_report, draw_trade_off, write_model_card, write_report
from loki_ds.report.pictures import retention as draw_retention
from loki_ds.report.pictures import training_curves
from loki_ds.retention.arm import check_tasks, library_versions
from loki_ds.retention.evaluation import evaluate_arm
from loki_ds.retention.pairing import main_metric_only, pair
from loki_ds.run_folder import digest_of, publish, weights_digest, write_json
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)


def retain(run: Run) -> None:
    """Evaluate base and implanted model in processes of their own, pair the documents, write the
    report. Rank 0's work alone.
    """
    if ranks.rank() > 0:
        return
    inputs = {
        "base": run.base_digest,
        "model": weights_digest(run.folder.model),
        **run.recipe.retention.model_dump(exclude={"processes"}),
    }
    if run.folder.finished("retain", inputs):
        log.info("retain: already there, %s", run.folder.report)
        return
    started = time.monotonic()
    base = _base_results(run)
    log.info("retain: evaluating the implanted model")
    results = evaluate_arm(_request(run, run.folder.model))
    write_json(run.folder.retention / "implanted.json", results)
    paired = pair(base, results)
    new = set(run.recipe.retention.new_task.tasks) if run.recipe.retention.new_task else set()
    report = build_report(
        run.recipe.run,
        abilities=main_metric_only(task for task in paired if task.task not in new),
        new_task=[task for task in paired if task.task in new],
        margin=run.recipe.retention.margin,
        facts={
            "base_digest": run.base_digest,
            "changes_rows": run.recipe.changes_rows,
            "mode": run.recipe.implant.peft.method if run.recipe.implant.mode == "peft" else run.recipe.implant.mode,
            "selection": _selection(run),
            "verification": json.loads(run.folder.verification.read_text()),
            "costs": {
                **run.costs,
                "retain": {"seconds": round(time.monotonic() - started, 1), "device": device.name()},
            },
            "origin": _origin(run, results),
        },
    )
    beside = [folder.parents[1] for folder in run.folder.root.parent.glob("*/report/report.json")]
    draw_trade_off(report, [other for other in sorted(beside) if other != run.folder.root], run.folder.trade_off)
    draw_retention(report["tasks"], report["margin"], run.folder.retention_picture)
    if run.folder.training_log.exists():
        training_curves(json.loads(run.folder.training_log.read_text()), run.folder.training_curves)
    write_report(report, run.folder.report, _pictures(run))
    write_model_card(report, run.folder.model)
    run.folder.record(run.folder.report, run.folder.model / "README.md")
    run.folder.finish("retain", inputs)
    log.info("retain: %s", run.folder.report / "report.html")


def check_retention(run: Run) -> None:
    """Refuse now what the evaluation would refuse after hours of training: tasks that are not known
    or not allowed.
    """
    ranks.on_first_rank(lambda: None if run.folder.has("retain") else check_tasks(_request(run, run.base)))


def _base_results(run: Run) -> dict[str, Any]:
    """The base's samples, evaluated once for all runs beside this one that ask the same of the same
    weights.
    """
    request = _request(run, run.base)
    include = run.recipe.retention.include_path
    key = {
        **request,
        "model": run.base_digest,
        "include_path": digest_of(Path(include)) if include else None,
        "libraries": library_versions(run.recipe.retention.backend),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    shared, own = run.folder.root.parent / ".base-results" / f"{name}.json", run.folder.retention / "base.json"
    if shared.exists():
        found = json.loads(shared.read_text())
        if found.get("key") != key:
            raise Refusal(
                f"{shared}: these base results are not those of this base, these tasks and these libraries; delete "
                "the file"
            )
        write_json(own, found)
        return found
    log.info("retain: evaluating the base")
    found = {**evaluate_arm(request), "key": key}
    write_json(own, found)
    publish(own, shared)
    return found


def _request(run: Run, model: Path) -> dict[str, Any]:
    section = run.recipe.retention
    groups: list[TaskGroup] = [*section.ability_groups, *([section.new_task] if section.new_task else [])]
    processes = section.processes
    if processes == "auto":
        processes = max(1, device.local_devices() // section.devices_per_model)
    return {
        "model": str(model),
        "dtype": run.recipe.model.dtype,
        "device": "cpu" if device.on_cpu() else "cuda",
        "trust_remote_code": run.recipe.model.trust_remote_code,
        "backend": section.backend,
        "processes": processes,
        "devices_per_model": section.devices_per_model,
        "batch_size": section.batch_size,
        "include_path": section.include_path,
        "allow_code_execution": section.allow_code_execution,
        "seed": section.seed,
        "groups": [group.model_dump() for group in groups],
    }


def _pictures(run: Run) -> dict[str, Path]:
    folder = run.folder
    return {
        "Retention: change of each task, implanted minus base.": folder.retention_picture,
        "Forgetting against skill, with the finished runs beside this one. Right and down is better.": folder.trade_off,
        "Training.": folder.training_curves,
        "Attribution: mean score of every node, and the layers of the highest and lowest 1% of nodes.": folder.heat_map,
        "Stability: rows in common when selected from two halves of the protected prompts.": folder.overlap_curve,
    }


def _selection(run: Run) -> str | None:
    """How the rows were chosen, in a word; None when everything trained."""
    if not run.recipe.changes_rows:
        return None
    return "file" if run.recipe.selection.positions else run.recipe.selection.strategy


def _origin(run: Run, results: dict[str, Any]) -> dict[str, str]:
    positions = run.folder.positions
    return {
        "base model": f"{run.recipe.model.path} (SHA-256 of weights {run.base_digest[:16]})",
        "positions": f"SHA-256 of file {digest_of(positions)[:16]}"
        if run.recipe.changes_rows
        else "none: every parameter trains",
        "selection": str(run.recipe.selection.model_dump()) if run.recipe.changes_rows else "none",
        "training": str(run.recipe.training),
        "versions": ", ".join(f"{name} {version}" for name, version in results["libraries"].items()),
        "again": (
            f"deepspeed --num_gpus {ranks.world_size()} launch/implant.py --recipe {run.folder.recipe} "
            "run=ANOTHER_FOLDER"
        ),
    }
