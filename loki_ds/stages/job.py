"""The main job on its ranks, stage by stage."""

import logging
import warnings
from typing import TYPE_CHECKING

from loki_ds.checking.findings import as_table, terminal
from loki_ds.distributed import ranks
from loki_ds.recipe.sections import Recipe
from loki_ds.stages.attribute import attribute
from loki_ds.stages.check import Checked, check
from loki_ds.stages.implant import implant
from loki_ds.stages.publish import check_publishing, publish
from loki_ds.stages.run import Run
from loki_ds.stages.select import select

if TYPE_CHECKING:
    from loki_ds.stages.retain import Share


def run_job(recipe: Recipe, until: str) -> None:
    """All stages up to one of them; ends this process.

    What needs no other rank is done once all have left: on NCCL whoever leaves waits for the rest,
    and would hold its device's memory beside the evaluation.
    """
    with ranks.process_group():
        log_on_first_rank()
        run = Run(recipe)
        checked = run_stages(run, until)
        share = None
        if until == "retain":
            from loki_ds.stages.retain import share_of_rank

            share = share_of_rank(run, checked)
    if share is not None:
        _judge(run, checked, share)
    ranks.end_process()


def run_stages(run: Run, until: str) -> Checked:
    """The stages one after the other, up to one of them or to the last that trains."""
    checked = _check(run, look_at_tasks=until in ("check", "retain"))
    if until == "retain":
        from loki_ds.stages.ask_base import ask_base

        ask_base(run, checked)
    if until in ("implant", "retain"):
        from loki_ds.stages.base_writes import base_writes

        base_writes(run, checked)
    if until != "check":
        ranks.on_first_rank(run.write_recipe)
        attribute(run, checked)
    if until not in ("check", "attribute"):
        positions = select(run, checked)
        if until != "select":
            implant(run, checked, positions)
    return checked


def _check(run: Run, look_at_tasks: bool) -> Checked:
    """The first stage, and what it found, for people.

    look_at_tasks: statistics and pictures take seconds to load, so only for who wants them.
    """
    checked = check(run)
    findings = checked.findings
    if look_at_tasks:
        from loki_ds.stages.base_writes import Writing
        from loki_ds.stages.retain import check_retention

        writing = Writing.of(run, checked)
        findings = findings + (writing.findings() if writing else []) + check_retention(run, checked)
    findings = findings + ranks.on_first_rank(lambda: check_publishing(run.recipe.training, run.folder))
    if ranks.rank() == 0:
        terminal().print(as_table(findings))
    return checked


def _judge(run: Run, checked: Checked, share: "Share") -> None:
    """The stages of one rank of a node: the dial, and the report."""
    from loki_ds.report.compare import compare_runs, comparison, read_report
    from loki_ds.stages.retain import retain
    from loki_ds.stages.tune import tune

    tune(run, checked)
    retain(run, checked, share)
    if share.nodes.this == 0:
        report = read_report(run.folder.root)
        terminal().print(comparison(compare_runs([run.folder.root])))
        terminal().print(f"{report['headline']}\n{report['verdict']}\nReport: {run.folder.report / 'report.html'}")
        publish(run.recipe.training, run.folder)  # last, for it may be refused


def log_on_first_rank() -> None:
    """One clear log: ours, on rank 0, with the time; warnings only from DeepSpeed."""
    level = logging.INFO if ranks.rank() == 0 else logging.ERROR
    logger = logging.getLogger("loki_ds")
    logger.setLevel(level)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s loki-ds: %(message)s", datefmt="%H:%M:%S"))
    logger.addHandler(handler)
    logger.propagate = False
    warnings.simplefilter("ignore", FutureWarning)  # for the libraries' authors, not for whoever runs this
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
