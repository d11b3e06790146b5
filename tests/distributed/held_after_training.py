"""What test_gpus.py starts: the main job until implant; each rank says what its device holds."""

import sys
from pathlib import Path

import torch

from loki_ds.distributed import ranks
from loki_ds.recipe.file import load_recipe
from loki_ds.refusal import shown_once
from loki_ds.stages.job import run_stages
from loki_ds.stages.run import Run

ROOT = Path(__file__).parents[2]

if __name__ == "__main__":
    with shown_once(), ranks.process_group():
        settings = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
        run_stages(Run(load_recipe(ROOT / "tests/few/loki.yaml", settings)), "implant")
        peak, held = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
        print(f"rank {ranks.rank()} held {held} of {peak} bytes", flush=True)
    ranks.end_process()
