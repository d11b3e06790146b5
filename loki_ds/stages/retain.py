"""Stage 4: base and implanted model through the same lm-eval tasks, paired, in `report/`.

Every node that trained evaluates, where all see the run folder; the report is rank 0's work. It can
be asked again, with other tasks or another margin: `retention/` keeps every model's answers by what
determines them, and every report under the settings that made it; `report/` is the one last asked
for.
"""

import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loki_ds.checking.findings import Findings
from loki_ds.checking.tasks import in_words
from loki_ds.disk.files import digest_of, weights_digest, write_json, written_whole
from loki_ds.distributed import device, ranks
from loki_ds.distributed.launcher import local_rank, local_size
from loki_ds.recipe.sections import TuneSection
from loki_ds.recipe.training_keys import without_secrets
from loki_ds.report.build import build_report, in_a_line, settings_in_words, write_model_card, write_report
from loki_ds.report.compare import draw_trade_off, is_read, read_report
from loki_ds.report.pictures import retention as draw_retention
from loki_ds.report.pictures import training_curves
from loki_ds.report.schema import Facts, Report
from loki_ds.retention.evaluation import Nodes, evaluate_into, forget_failures
from loki_ds.retention.messages import Request
from loki_ds.retention.pairing import PairedTask, pair
from loki_ds.retention.question import check_backend, short_digest
from loki_ds.stages.costs import costs_so_far, note_cost
from loki_ds.stages.fingerprints import Inputs, retention_inputs
from loki_ds.stages.questions import answers_in, base_answers_beside, base_arm, model_arm, question_of
from loki_ds.stages.run import Run
from loki_ds.stages.tune import tune

log = logging.getLogger(__name__)


def check_retention(run: Run) -> Findings:
    """Look at the tasks, unless their result is there. All ranks call it.

    Raises:
        Refusal: a task that lm-eval does not know, that gives no number per document, or that runs
            code and may not.
    """
    section, done = run.recipe.retention, run.folder.inputs_of("retain")
    asked = json.loads(json.dumps(section.model_dump(exclude={"processes"})))
    if done is not None and all(done.get(key) == value for key, value in asked.items()):
        return []
    check_backend(section)
    return ranks.on_first_rank(lambda: in_words(section, run.tasks, run.recipe.tune))


@dataclass(frozen=True)
class Evaluation:
    """One model that is to be evaluated: the request, and the key of its answers."""

    what: str
    request: Request
    key: dict[str, Any]
    of_all_runs: bool


@dataclass(frozen=True)
class Asked:
    """What rank 0 tells the other nodes: the keys of both models' answers, and what is still to be
    evaluated.
    """

    inputs: Inputs
    keys: tuple[dict[str, Any], dict[str, Any]]
    left: list[Evaluation]


def retain(run: Run) -> None:
    """Evaluate base and implanted model in processes of their own, pair the documents, write the
    report; before it, with a dial, choose the scale of what was trained. All ranks call it; those
    that have nothing to do are done at once.
    """
    if run.recipe.tune is None:
        asked = ranks.on_first_rank(lambda: _asked(run))
    elif ranks.rank() > 0:
        return  # nobody waits in a collective while the first rank goes along the dial
    else:
        tune(run, run.recipe.tune)
        asked = _asked(run)
    if asked is None:
        log.info("retain: already there, %s", run.folder.report)
        return
    together = run.shared.by_all and run.recipe.tune is None
    nodes = Nodes(ranks.rank() // local_size(), ranks.world_size() // local_size()) if together else Nodes()
    if local_rank() > 0 or (nodes.count == 1 and ranks.rank() > 0):
        return
    started = time.monotonic()
    for evaluations in _in_turn(asked.left):
        _evaluate(run, evaluations, nodes)
    if ranks.rank() > 0:
        return
    kept = _kept(run, asked.inputs)
    if asked.left:
        note_cost(run.folder, "retain", {"seconds": round(time.monotonic() - started, 1), "device": device.name()})
    if not (kept / "report").exists():
        write_json(kept / "settings.json", run.recipe.retention.model_dump())
        base, implanted = (answers_in(run).read(key) for key in asked.keys)
        _write_report(run, pair(base, implanted), implanted["libraries"], kept)
    with written_whole(run.folder.report) as aside:
        shutil.copytree(kept / "report", aside)
    write_model_card(read_report(run.folder.root), run.folder.model, run.base.folder, run.recipe.model.path)
    run.folder.record(run.folder.report, run.folder.model / "README.md")
    run.folder.finish("retain", asked.inputs)
    log.info("retain: %s", run.folder.report / "report.html")


# --- the models' answers --------------------------------------------------------------------------


def _asked(run: Run) -> Asked | None:
    """What is to be evaluated; None where the report is there. Rank 0's work."""
    inputs = retention_inputs(run.recipe, run.base.digest, weights_digest(run.folder.model))
    if run.folder.inputs_of("retain") == json.loads(json.dumps(inputs)):
        return None
    question, base, implanted = question_of(run), base_arm(run), model_arm(run, run.folder.model)
    answers = answers_in(run)
    of_base = answers.kept(question.key(base))
    keys = (of_base.key, question.key(implanted, of_base))
    if (_kept(run, inputs) / "report").exists():
        return Asked(inputs, keys, [])
    both = [
        Evaluation("the base", question.request(base), keys[0], of_all_runs=True),
        Evaluation("the implanted model", question.request(implanted, of_base), keys[1], of_all_runs=False),
    ]
    left = [one for one in both if not answers.at_hand(one.key, base_answers_beside(run))]
    for one in left:
        forget_failures(answers.shares(one.key))
    return Asked(inputs, keys, left)


def _in_turn(left: list[Evaluation]) -> list[list[Evaluation]]:
    """Those that share processes, which start once: not vLLM's, which keeps its memory, nor one
    that waits for the other's answers.
    """
    alone = any(one.request.backend == "vllm" or one.request.stop for one in left)
    return [[one] for one in left] if alone else [left] if left else []


def _evaluate(run: Run, evaluations: list[Evaluation], nodes: Nodes) -> None:
    """Models' documents, in this run's folder; the base's for all runs beside this one that ask the
    same of the same weights.
    """
    answers = answers_in(run)
    log.info("retain: evaluating %s", " and ".join(one.what for one in evaluations))
    evaluate_into(answers, [(one.request, one.key) for one in evaluations], nodes)
    for one in evaluations:
        if nodes.this == 0 and one.of_all_runs:
            answers.publish_to(base_answers_beside(run), one.key)


def _kept(run: Run, inputs: Inputs) -> Path:
    """The folder of the report with these settings."""
    return run.folder.retention / short_digest(inputs)


# --- the report -----------------------------------------------------------------------------------


def _write_report(run: Run, paired: list[PairedTask], libraries: dict[str, str], kept: Path) -> None:
    """The report of the paired documents, with its pictures, in the folder of its settings."""
    report = build_report(run.recipe.run, paired, run.recipe.retention, _facts(run, libraries))
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
        "origin": _origin(run),
        "settings": settings_in_words(recipe.retention, recipe.model.dtype, libraries),
    }


def _origin(run: Run) -> dict[str, str]:
    recipe, positions = run.recipe, run.folder.positions
    written = run.rendering.rewritten if run.rendering else []
    rows = f"SHA-256 of file {digest_of(positions)[:16]}" if recipe.changes_rows else f"none ({recipe.implant.method})"
    pull = {key: getattr(recipe.implant, key) for key in ("pull", "fade") if getattr(recipe.implant, key)}
    return {
        "base model": f"{recipe.model.path} (SHA-256 of weights {run.base.digest[:16]})",
        "positions": rows,
        "selection": in_a_line(recipe.selection.model_dump()) if recipe.changes_rows else "none",
        "training": in_a_line(without_secrets(recipe.training)),
        **({"pull": in_a_line(pull)} if pull else {}),
        **_rehearsal(run),
        **_routing(run),
        **({"scale": _scale(run, recipe.tune)} if recipe.tune else {}),
        **({"chat template": "; ".join(written)} if written else {}),
        "again": _again(run),
    }


def _again(run: Run) -> str:
    """The command that trains the same, on as many nodes and devices."""
    cost = costs_so_far(run.folder).get("implant", {})
    trained, nodes = cost.get("ranks", ranks.world_size()), cost.get("nodes", 1)
    several = f"--num_nodes {nodes} " if nodes > 1 else ""
    started = f"deepspeed {several}--num_gpus {trained // nodes} launch/implant.py"
    return f"{started} --recipe {run.folder.recipe} run=ANOTHER_FOLDER"


def _rehearsal(run: Run) -> dict[str, str]:
    """What was rehearsed, and how far the model is from the base on texts that were not."""
    section = run.recipe.implant.rehearse
    if section is None:
        return {}
    texts, drift = "protected texts" if section.prompts == "protected" else f"texts of {section.prompts}", ""
    if measured := _logged(run, "drift"):
        drift = f"{measured[-1]:.3g} nats a token from the base's predictions, on {texts} held out"
    return {"rehearsal": in_a_line(section.model_dump()), **({"drift": drift} if drift else {})}


def _routing(run: Run) -> dict[str, str]:
    """Of a mixture of experts, what the training did to the routers' choices."""
    found = _logged(run, "routing_changed")
    return {"routing": f"{found[-1]:.2%} of the base's choices on protected prompts changed"} if found else {}


def _logged(run: Run, key: str) -> list[float]:
    """From the training's log, in order."""
    file = run.folder.training_log
    return [line[key] for line in json.loads(file.read_text()) if key in line] if file.exists() else []


def _scale(run: Run, section: TuneSection) -> str:
    """What was chosen along the dial, and how."""
    chosen, curve = (json.loads((run.folder.tune / f"{name}.json").read_text()) for name in ("chosen", "curve"))
    tried = ", ".join(f"{place['scale']:g}" for place in curve)
    return (
        f"{chosen['scale']:g} of the trained change, for a budget of {in_a_line(section.budget.model_dump())}; "
        f"tried: {tried}, on the other half of the documents"
    )


def _draw(run: Run, report: Report, kept: Path) -> dict[str, Path]:
    """The report's pictures by their captions."""
    folder = run.folder
    beside = sorted(other.parents[1] for other in folder.root.parent.glob("*/report/report.json"))
    draw_trade_off(
        report, [other for other in beside if other != folder.root and is_read(other)], kept / "trade_off.png"
    )
    draw_retention(report["tasks"], report["margin"], kept / "retention.png")
    if folder.training_log.exists():
        training_curves(json.loads(folder.training_log.read_text()), folder.training_curves)
    trade_off = kept / "trade_off.png"
    return {
        "Retention: change of each task, implanted minus base.": kept / "retention.png",
        "Losses alone against skill, with the finished runs beside this one. Right and down is better.": trade_off,
        "The dial: the trained change at several scales, on the half of the documents that chose.": (
            folder.tune / "curve.png"
        ),
        "Training.": folder.training_curves,
        "Attribution: mean score of every node, and the layers of the highest and lowest 1% of nodes.": folder.heat_map,
        "Stability: rows in common when selected from two halves of the protected prompts.": folder.overlap_curve,
    }
