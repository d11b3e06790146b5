"""The main job: check -> attribute -> select -> implant -> retain.

    deepspeed --num_gpus 8 launch/implant.py --recipe recipes/tiny/loki.yaml [key=value ...]
    deepspeed --num_gpus 8 --module loki_ds.implant --recipe tiny/loki [key=value ...]

The second needs no checkout. Dotted keys override the recipe (selection.quota=20). Stages whose
result is in the run folder are skipped; `--until STAGE` stops early. One process needs no launcher.
"""

import argparse

from loki_ds.disk.run_folder import STAGES
from loki_ds.distributed.quick_imports import quick_imports
from loki_ds.recipe.file import load_recipe
from loki_ds.refusal import shown_once


def main() -> None:
    arguments = parse_arguments()
    with shown_once():
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        with quick_imports():
            from loki_ds.stages.job import run_job
        run_job(recipe, arguments.until)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe", required=True, help="YAML file or name (loki-ds recipes), for example recipes/tiny/loki.yaml"
    )
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="stop after this stage")
    # The launcher passes it; the environment has it, too.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted recipe keys to override")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
