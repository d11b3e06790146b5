"""The main job on its ranks, stage by stage."""

import logging
import warnings

from rich.console import Console

from loki_ds.checking.findings import as_table
from loki_ds.distributed import ranks
from loki_ds.recipe.sections import Recipe
from loki_ds.stages.attribute import attribute
from loki_ds.stages.implant import implant
from loki_ds.stages.run import Run
from loki_ds.stages.select import select


def run_job(recipe: Recipe, until: str) -> None:
    """All stages up to one of them; ends this process."""
    with ranks.process_group():
        log_on_first_rank()
        run_stages(Run(recipe), until)
    ranks.end_process()


def run_stages(run: Run, until: str) -> None:
    findings = run.checked.findings
    if until in ("check", "retain"):
        # Statistics and pictures take seconds to load: only for who wants them.
        from loki_ds.stages.retain import check_retention

        findings = findings + check_retention(run)
    if ranks.rank() == 0:
        Console().print(as_table(findings))
    if until == "check":
        return
    ranks.on_first_rank(run.write_recipe)
    attribute(run)
    if until == "attribute":
        return
    positions = select(run)
    if until == "select":
        return
    implant(run, positions)
    if until == "implant":
        return
    from loki_ds.report.compare import compare_runs, comparison
    from loki_ds.stages.retain import retain

    retain(run)
    if ranks.rank() == 0:
        Console().print(comparison(compare_runs([run.folder.root])))


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
