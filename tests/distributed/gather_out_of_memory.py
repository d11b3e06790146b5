"""What test_gpus.py starts: the sweep on a sharded model, once with all memory, once where rank 1's
device has a share of what the sweep took; both must give the same scores.

deepspeed --num_gpus 2 tests/distributed/gather_out_of_memory.py SHARE
"""

import logging
import sys

import torch
from attribute_sharded import ROOT, prompts
from transformers.integrations import HfDeepSpeedConfig

from loki_ds.attribution.batches import batches, sweep_batches
from loki_ds.attribution.sweep import Sweep
from loki_ds.distributed import ranks
from loki_ds.model.base import load_model
from loki_ds.refusal import shown_once

CONFIG = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}


def scores(sweep: Sweep) -> dict[int, torch.Tensor]:
    """Each prompt's scores, of all ranks."""
    asked = prompts()[:8]
    swept = [
        (index, part.clone())
        for indices, batch in sweep_batches(sweep, asked, batches(asked, 4))
        for index, part in zip(indices, batch.scores, strict=True)
    ]
    return dict(pair for part in ranks.all_gather(swept) for pair in part)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    with shown_once(), ranks.process_group():
        live = HfDeepSpeedConfig(CONFIG)  # must stay referenced while the model is built
        sweep = Sweep(load_model(ROOT / "recipes/tiny/model", torch.float32))
        scores(sweep)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held, expected = torch.cuda.memory_allocated(), scores(sweep)
        took = torch.cuda.max_memory_allocated() - held
        if ranks.rank() == 1:
            _, total = torch.cuda.mem_get_info()
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction((held + float(sys.argv[-1]) * took) / total)
        in_less = scores(sweep)
        assert in_less.keys() == expected.keys()
        largest = max((in_less[i] - expected[i]).abs().max().item() for i in expected)
        left = torch.cuda.memory_allocated() - held
        print(f"rank {ranks.rank()}: differs by {largest:.3g}, {left} bytes left", flush=True)
    ranks.end_process()
