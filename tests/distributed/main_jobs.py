"""The main job for many settings in turn, in one start of the launcher (most of a start is
importing the libraries).

    deepspeed --num_gpus 2 tests/distributed/main_jobs.py CASES.json

CASES.json is a list of `{"recipe": file, "overrides": [...]}`; each goes until implant.
"""

import json
import sys
from pathlib import Path

from loki_ds.distributed.quick_imports import quick_imports
from loki_ds.recipe.file import load_recipe
from loki_ds.refusal import shown_once

with quick_imports():
    from loki_ds.distributed import ranks
    from loki_ds.stages.job import log_on_first_rank, run_stages
    from loki_ds.stages.run import Run


def main() -> None:
    cases = json.loads(Path(sys.argv[-1]).read_text())
    with shown_once(), ranks.process_group():
        log_on_first_rank()
        for case in cases:
            run_stages(Run(load_recipe(case["recipe"], case["overrides"])), "implant")
    ranks.end_process()


if __name__ == "__main__":
    main()
