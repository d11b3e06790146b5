"""The main job for many settings in turn, in one start of the launcher (most of a start is
importing the libraries).

    deepspeed --num_gpus 2 tests/distributed/main_jobs.py CASES.json

CASES.json is a list of `{"recipe": file, "overrides": [...]}`; each goes until implant. With
`refused: true` there it is to end in a refusal; each rank writes those it met, by run folder, to
`refused-RANK.json` beside CASES.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

from loki_ds.distributed.quick_imports import quick_imports
from loki_ds.recipe.file import load_recipe
from loki_ds.refusal import Refusal, shown_once

with quick_imports():
    from loki_ds.distributed import ranks
    from loki_ds.stages.job import log_on_first_rank, run_stages
    from loki_ds.stages.run import Run


def main() -> None:
    cases = json.loads(Path(sys.argv[-1]).read_text())
    sentences = {}
    with shown_once(), ranks.process_group():
        log_on_first_rank()
        for case in cases:
            if case["refused"]:
                sentences[case["overrides"][-1]] = refusal_of(case)
            else:
                run_stages(Run(load_recipe(case["recipe"], case["overrides"])), "implant")
        Path(sys.argv[-1]).with_name(f"refused-{ranks.rank()}.json").write_text(json.dumps(sentences))
    ranks.end_process()


def refusal_of(case: dict[str, Any]) -> str:
    """The sentence of a job that has to end in one, and to leave this rank as it was; else
    nothing.
    """
    try:
        run_stages(Run(load_recipe(case["recipe"], case["overrides"])), "implant")
    except Refusal as refusal:
        return str(refusal)
    return ""


if __name__ == "__main__":
    main()
