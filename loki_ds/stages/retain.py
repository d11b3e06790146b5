"""Stage 4: base and implanted model through the same lm-eval tasks, paired, in `report/`.

Rank 0's work alone. It can be asked again, with other tasks or another margin: `retention/` keeps
every model's answers by what determines them, and every report under the settings that made it;
`report/` is the one last asked for.
"""

import hashlib
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from loki_ds import device, ranks
from loki_ds.recipe_keys import without_secrets
from loki_ds.refusal import Refusal
from loki_ds.report.build import build_report, write_model_card, write_report
from loki_ds.report.compare import draw_trade_off, read_report
from loki_ds.report.pictures import retention as draw_retention
from loki_ds.report.pictures import training_curves
from loki_ds.report.schema import Facts, Report
from loki_ds.retention.arm import library_versions
from loki_ds.retention.evaluation import evaluate_arm
from loki_ds.retention.pairing import PairedTask, main_metric_only, pair
from loki_ds.retention.parcels import ArmResult, Request
from loki_ds.run_folder import digest_of, publish, weights_digest, write_json, written_whole
from loki_ds.stages.costs import costs_so_far, note_cost
from loki_ds.stages.inputs import retention_inputs
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)


def retain(run: Run) -> None:
    """Evaluate base and implanted model in processes of their own, pair the documents, write the
    report.
    """
    if ranks.rank() > 0:
        return
    section, model_digest = run.recipe.retention, weights_digest(run.folder.model)
    inputs = retention_inputs(section, run.base.digest, model_digest)
    if run.folder.inputs_of("retain") == json.loads(json.dumps(inputs)):
        log.info("retain: already there, %s", run.folder.report)
        return
    kept = run.folder.retention / _digest(inputs)
    if not (kept / "report").exists():
        started = time.monotonic()
        base, implanted = _base_results(run), _model_results(run, model_digest)
        seconds = round(time.monotonic() - started, 1)
        note_cost(run.folder, "retain", {"seconds": seconds, "device": device.name()})
        write_json(kept / "settings.json", section.model_dump())
        _write_report(run, pair(base, implanted), implanted["libraries"], kept)
    with written_whole(run.folder.report) as aside:
        shutil.copytree(kept / "report", aside)
    write_model_card(read_report(run.folder.root), run.folder.model)
    run.folder.record(run.folder.report, run.folder.model / "README.md")
    run.folder.finish("retain", inputs)
    log.info("retain: %s", run.folder.report / "report.html")


# --- the models' answers --------------------------------------------------------------------------


def _base_results(run: Run) -> ArmResult:
    """The base's documents, evaluated once for all runs beside this one that ask the same of the
    same weights.
    """
    key = _key(run, run.base.digest)
    shared = run.folder.root.parent / ".base-results" / f"{_digest(key)}.json"
    if shared.exists():
        found = json.loads(shared.read_text())
        if found.get("key") != key:
            raise Refusal(
                f"{shared}: these base results are not those of this base, these tasks and these libraries; delete the "
                "file"
            )
        write_json(_answers(run, key), found)
        return found
    own = _evaluated(run, run.base.folder, key, "the base")
    publish(own, shared)
    return json.loads(own.read_text())


def _model_results(run: Run, digest: str) -> ArmResult:
    """The implanted model's documents, evaluated once for all reports on them."""
    own = _evaluated(run, run.folder.model, _key(run, digest), "the implanted model")
    return json.loads(own.read_text())


def _evaluated(run: Run, model: Path, key: dict[str, Any], what: str) -> Path:
    """The file of a model's documents in this run's folder, evaluated if it is not there."""
    own = _answers(run, key)
    if not own.exists():
        log.info("retain: evaluating %s", what)
        write_json(own, {**evaluate_arm(_request(run, model)), "key": key})
    return own


def _template(run: Run) -> str | None:
    """The chat template that trained, where it is not the base's own."""
    return run.rendering.exported_template if run.rendering else None


def _answers(run: Run, key: dict[str, Any]) -> Path:
    return run.folder.retention / "answers" / f"{_digest(key)}.json"


def _key(run: Run, digest: str) -> dict[str, Any]:
    """All that determines a model's documents and scores, in JSON's types."""
    section = run.recipe.retention
    request = _request(run, run.base.folder).model_dump(mode="json", exclude={"model", "tokenizer", "share"})
    include = digest_of(Path(section.include_path)) if section.include_path else None
    libraries = library_versions(section.backend)
    return {**request, "model": digest, "template": _template(run), "include_path": include, "libraries": libraries}


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _request(run: Run, model: Path) -> Request:
    section = run.recipe.retention
    each = section.devices_per_model
    processes = max(1, device.local_devices() // each) if section.processes == "auto" else section.processes
    return Request(
        model=str(model),
        tokenizer=str(run.folder.model) if _template(run) else None,  # both models read the same text
        dtype=run.recipe.model.dtype,
        device="cpu" if device.on_cpu() else "cuda",
        trust_remote_code=run.recipe.model.trust_remote_code,
        backend=section.backend,
        processes=processes,
        devices_per_model=each,
        batch_size=section.batch_size,
        include_path=section.include_path,
        allow_code_execution=section.allow_code_execution,
        seed=section.seed,
        groups=section.groups,
    )


# --- the report -----------------------------------------------------------------------------------


def _write_report(run: Run, paired: list[PairedTask], libraries: dict[str, str], kept: Path) -> None:
    """The report of the paired documents, with its pictures, in the folder of its settings."""
    section = run.recipe.retention
    new = set(section.new_task.tasks) if section.new_task else set()
    report = build_report(
        run.recipe.run,
        abilities=main_metric_only(task for task in paired if task.task not in new),
        new_task=[task for task in paired if task.task in new],
        margin=section.margin,
        facts=_facts(run, libraries),
    )
    write_report(report, kept / "report", _draw(run, report, kept))


def _facts(run: Run, libraries: dict[str, str]) -> Facts:
    recipe = run.recipe
    by = "file" if recipe.selection.positions else recipe.selection.strategy
    return {
        "base_digest": run.base.digest,
        "changes_rows": recipe.changes_rows,
        "mode": recipe.implant.method,
        "selection": by if recipe.changes_rows else None,
        "verification": json.loads(run.folder.verification.read_text()),
        "costs": costs_so_far(run.folder),
        "origin": _origin(run, libraries),
    }


def _origin(run: Run, libraries: dict[str, str]) -> dict[str, str]:
    recipe, positions = run.recipe, run.folder.positions
    written = run.rendering.rewritten if run.rendering else []
    again = (
        f"deepspeed --num_gpus {ranks.world_size()} launch/implant.py --recipe {run.folder.recipe} run=ANOTHER_FOLDER"
    )
    rows = f"SHA-256 of file {digest_of(positions)[:16]}" if recipe.changes_rows else "none: every parameter trains"
    return {
        "base model": f"{recipe.model.path} (SHA-256 of weights {run.base.digest[:16]})",
        "positions": rows,
        "selection": str(recipe.selection.model_dump()) if recipe.changes_rows else "none",
        "training": str(without_secrets(recipe.training)),
        **({"chat template": "; ".join(written)} if written else {}),
        "versions": ", ".join(f"{name} {version}" for name, version in libraries.items()),
        "again": again,
    }


def _draw(run: Run, report: Report, kept: Path) -> dict[str, Path]:
    """The report's pictures by their captions."""
    folder = run.folder
    beside = [other.parents[1] for other in folder.root.parent.glob("*/report/report.json")]
    draw_trade_off(report, [other for other in sorted(beside) if other != folder.root], kept / "trade_off.png")
    draw_retention(report["tasks"], report["margin"], kept / "retention.png")
    if folder.training_log.exists():
        training_curves(json.loads(folder.training_log.read_text()), folder.training_curves)
    trade_off = kept / "trade_off.png"
    return {
        "Retention: change of each task, implanted minus base.": kept / "retention.png",
        "Forgetting against skill, with the finished runs beside this one. Right and down is better.": trade_off,
        "Training.": folder.training_curves,
        "Attribution: mean score of every node, and the layers of the highest and lowest 1% of nodes.": folder.heat_map,
        "Stability: rows in common when selected from two halves of the protected prompts.": folder.overlap_curve,
    }
