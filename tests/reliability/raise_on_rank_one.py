"""What test_faults.py starts: the main job on the tiny model, where rank 1 raises in its second
training step.
"""

import sys
from pathlib import Path

from loki_ds.distributed import ranks
from loki_ds.implanting.trainer import ImplantTrainer
from loki_ds.recipe.file import load_recipe
from loki_ds.refusal import shown_once
from loki_ds.stages.check import check
from loki_ds.stages.implant import implant
from loki_ds.stages.run import Run
from loki_ds.stages.select import select

ROOT = Path(__file__).parents[2]


def main() -> None:
    step = ImplantTrainer.training_step

    def breaks(trainer: ImplantTrainer, *arguments: object, **settings: object) -> object:
        if ranks.rank() == 1 and trainer.state.global_step == 1:
            raise RuntimeError("rank 1 breaks in a training step")
        return step(trainer, *arguments, **settings)

    ImplantTrainer.training_step = breaks  # type: ignore[method-assign]
    recipe = load_recipe(
        ROOT / "tests/few/loki.yaml", ["selection.strategy=random", "training.max_steps=4", f"run={sys.argv[-1]}"]
    )
    with shown_once(), ranks.process_group():
        run = Run(recipe)
        checked = check(run)
        implant(run, checked, select(run, checked))


if __name__ == "__main__":
    main()
