"""What the launcher starts for `models.py`: the main job under ZeRO-3 for one type after another.

deepspeed --num_gpus 2 eval/studies/models_sharded.py FOLDER

FOLDER/TYPE/base is a model; FOLDER/TYPE/sharded gets what came of it, `yes` or what was said. After
what was no success it ends, for the ranks may not be at the same place any more.
"""

import signal
import sys
from pathlib import Path

from loki_ds.distributed import ranks
from loki_ds.recipe.file import load_recipe
from loki_ds.refusal import Refusal
from loki_ds.stages.job import run_stages
from loki_ds.stages.run import Run

SECONDS = 100  # for one type
SETTINGS = [
    *("implant.mode=rows", "training.weight_decay=0", "training.max_steps=2", "training.per_device_train_batch_size=2"),
    *("protected.per_subject=1", "attribution.steps=2", "deepspeed=launch/zero3.json"),
]


def main() -> None:
    folders = sorted(base.parent for base in Path(sys.argv[-1]).glob("*/base"))
    with ranks.process_group():
        for folder in folders:
            if not (folder / "sharded").exists() and not whole(folder):
                break
    ranks.end_process()


def whole(folder: Path) -> bool:
    """Whether the main job went through, until the byte check."""
    signal.alarm(SECONDS)  # ends this rank, and by the launcher the other
    said = "yes"
    try:
        overrides = [f"model.path={folder / 'base'}", f"run={folder / 'run'}", *SETTINGS]
        run_stages(Run(load_recipe("recipes/tiny/loki.yaml", overrides)), "implant")
    except Refusal as refusal:
        said = f"no: {str(refusal).split(': ', 1)[-1]}"
    except Exception as error:  # noqa: BLE001 (a traceback is what the table must show)
        said = f"ERROR {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    signal.alarm(0)
    if ranks.rank() == 0 or said != "yes":
        (folder / "sharded").write_text(said)
    return said == "yes"


if __name__ == "__main__":
    main()
