"""A training script of somebody's own: transformers' trainer, once with what a recipe's fade is and
once with `loki_ds.Fade`, and the weights of both.

    deepspeed --num_gpus 2 tests/distributed/someones_trainer.py OUT [CONFIGURATION]
"""

import sys
from pathlib import Path
from typing import Any

import deepspeed
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from loki_ds import Fade
from loki_ds.distributed import ranks
from loki_ds.implanting.pull import PullToBase, pulled
from loki_ds.recipe.implant import ImplantSection

BASE = Path(__file__).parents[2] / "recipes/tiny/model"
SECTION = ImplantSection(mode="full", fade=0.8)


def main() -> None:
    deepspeed.init_distributed()
    out, *configuration = (Path(word) for word in sys.argv[1:] if not word.startswith("--"))
    train(out / "recipe.safetensors", configuration, lambda model: PullToBase(pulled(model, SECTION), SECTION, False))
    train(out / "fade.safetensors", configuration, lambda _: Fade(0.8))


def train(out: Path, configuration: list[Path], pull: Any) -> None:
    arguments = TrainingArguments(
        str(out.parent / "checkpoints"),
        deepspeed=str(configuration[0]) if configuration else None,
        ddp_backend="gloo",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        max_steps=4,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        per_device_train_batch_size=2,
    )
    rows = Dataset.from_list([{"input_ids": [i, i + 1, i + 2], "labels": [i, i + 1, i + 2]} for i in range(3, 35)])
    model = AutoModelForCausalLM.from_pretrained(BASE).requires_grad_(True)
    callback: TrainerCallback = pull(model)
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[callback])
    trainer.train()
    engine = trainer.deepspeed if trainer.is_deepspeed_enabled else trainer.model_wrapped
    tensors = trainer.accelerator.get_state_dict(engine)
    if ranks.rank() == 0:
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, out)


if __name__ == "__main__":
    main()
