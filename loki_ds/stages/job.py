"""The main job on its ranks, stage by stage."""

import logging
import warnings
from collections.abc import Iterator

from rich.console import Console

from loki_ds.checking.findings import as_table
from loki_ds.distributed import ranks
from loki_ds.recipe.sections import Recipe
from loki_ds.stages.attribute import attribute
from loki_ds.stages.check import check
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
    """The stages one after the other, up to one of them."""
    for done in _stages(run, look_at_tasks=until in ("check", "retain")):
        if done == until:
            return


def _stages(run: Run, look_at_tasks: bool) -> Iterator[str]:
    """Yields the name of each stage that is done.

    look_at_tasks: statistics and pictures take seconds to load, so only for who wants them.
    """
    checked = check(run)
    findings = checked.findings
    if look_at_tasks:
        from loki_ds.stages.retain import check_retention

        findings = findings + check_retention(run)
    if ranks.rank() == 0:
        Console().print(as_table(findings))
    yield "check"
    ranks.on_first_rank(run.write_recipe)
    attribute(run, checked)
    yield "attribute"
    positions = select(run, checked)
    yield "select"
    implant(run, checked, positions)
    yield "implant"
    from loki_ds.report.compare import compare_runs, comparison
    from loki_ds.stages.retain import retain
    from loki_ds.stages.tune import tune

    tune(run, checked)
    retain(run, checked)
    if ranks.rank() == 0:
        Console().print(comparison(compare_runs([run.folder.root])))
    yield "retain"


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
