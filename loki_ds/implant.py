"""The main job: check -> attribute -> select -> implant -> retain.

    deepspeed --num_gpus 8 launch/implant.py --recipe recipes/tiny/loki.yaml [key=value ...]
    deepspeed --num_gpus 8 --module loki_ds.implant --recipe tiny/loki [key=value ...]

The second needs no checkout. Dotted keys override the recipe (selection.quota=20). Stages whose
result is already in the run folder are skipped; `--until STAGE` stops early. Without a launcher it
runs on one process.
"""

import argparse
import logging
import warnings

import deepspeed
from rich.console import Console

from loki_ds import ranks
from loki_ds.checking.findings import as_table
from loki_ds.recipe_file import load_recipe
from loki_ds.refusal import shown_once
from loki_ds.stages.attribute import attribute
from loki_ds.stages.implant import implant
from loki_ds.stages.run import Run
from loki_ds.stages.select import select

STAGES = ("check", "attribute", "select", "implant", "retain")


def main() -> None:
    arguments = parse_arguments()
    with shown_once():
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        with ranks.process_group():
            log_on_first_rank()
            run_stages(Run(recipe), arguments.until)
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


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe", required=True, help="YAML file or name (loki-ds recipes), for example recipes/tiny/loki.yaml"
    )
    parser.add_argument("--until", choices=STAGES, default="retain", help="stop after this stage")
    parser.add_argument(
        "--local_rank", type=int, help=argparse.SUPPRESS
    )  # the launcher passes it; the environment has it too
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted recipe keys to override")
    return parser.parse_intermixed_args()


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
    deepspeed.utils.logger.setLevel(logging.WARNING)


if __name__ == "__main__":
    main()
