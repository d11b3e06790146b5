"""What test_faults.py starts: the main job in float16.

DeepSpeed refuses it on CPUs, where it is only slow; that one answer is changed.

deepspeed --num_gpus 2 tests/reliability/in_half_precision.py KEY=VALUE...
"""

import sys

import deepspeed

from loki_ds.distributed import ranks
from loki_ds.recipe.file import load_recipe
from loki_ds.refusal import shown_once
from loki_ds.stages.job import log_on_first_rank, run_stages
from loki_ds.stages.run import Run


def main() -> None:
    deepspeed.get_accelerator().is_fp16_supported = lambda: True
    settings = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    with shown_once(), ranks.process_group():
        log_on_first_rank()
        run_stages(Run(load_recipe("tests/few/loki.yaml", settings)), "implant")
    ranks.end_process()


if __name__ == "__main__":
    main()
