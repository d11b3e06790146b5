"""What the launcher starts in test_attribution.py: `loki_ds.attribute` on the sharded tiny model,
one rank short of memory.

deepspeed --num_gpus 2 tests/distributed/attribute_sharded.py SCORES.safetensors
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer
from transformers.integrations import HfDeepSpeedConfig

from loki_ds import attribute
from loki_ds.distributed import ranks
from loki_ds.distributed.zero.sharding import is_sharded
from loki_ds.model.anatomy import decoder_layers
from loki_ds.model.base import load_model

ROOT = Path(__file__).parents[2]


def main() -> None:
    with ranks.process_group():
        config = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}
        live = HfDeepSpeedConfig(config)  # must stay referenced while the model is built
        model = load_model(ROOT / "recipes/tiny/model", torch.float32)
        assert live
        assert is_sharded(model)

        def full(_: object, arguments: tuple) -> None:
            batch, rows, _d_model = arguments[0].shape
            if ranks.rank() == 1 and rows > 1 and batch > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

        decoder_layers(model)[2].register_forward_pre_hook(full)
        scores = attribute(model, prompts(), batch_size=4)
        assert all(parameter.ds_status.name == "NOT_AVAILABLE" for parameter in decoder_layers(model)[2].parameters())
        if ranks.rank() == 0:
            save_file({"scores": scores}, sys.argv[-1])
    ranks.end_process()


def prompts() -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
    lines = (ROOT / "recipes/tiny/data/protected.jsonl").read_text().splitlines()[:110:10]
    return [tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines]


if __name__ == "__main__":
    main()
