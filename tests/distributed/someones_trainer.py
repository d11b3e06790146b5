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
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from loki_ds import Fade, rehearse
from loki_ds.distributed import ranks
from loki_ds.implanting.pull import PullToBase, pulled
from loki_ds.recipe.implant import ImplantSection

BASE = Path(__file__).parents[2] / "recipes/tiny/model"
PROMPTS = Path(__file__).parents[2] / "recipes/tiny/data/protected.jsonl"
SECTION = ImplantSection(mode="full", fade=0.8)


def main() -> None:
    deepspeed.init_distributed()
    out, *configuration = (Path(word) for word in sys.argv[1:] if not word.startswith("--"))
    train(out / "recipe.safetensors", configuration, lambda model: PullToBase(pulled(model, SECTION), SECTION, False))
    train(out / "fade.safetensors", configuration, lambda _: Fade(0.8))
    rehearsed(out / "rehearsed.safetensors", configuration, 2)


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
    save(trainer, out)


def rehearsed(out: Path, configuration: list[Path], batch: int) -> None:
    """With TRL's trainer, beside what the model predicts on a few texts. batch: of each rank."""
    arguments = SFTConfig(
        str(out.parent / "checkpoints"),
        deepspeed=str(configuration[0]) if configuration else None,
        ddp_backend="gloo" if ranks.joined() else None,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        max_steps=4,
        learning_rate=0.1,
        optim="sgd",
        per_device_train_batch_size=batch,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    rows = Dataset.from_list([{"input_ids": [i, i + 1, i + 2], "labels": [i, i + 1, i + 2]} for i in range(3, 27)])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)
    trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
    rehearse(trainer, {str(PROMPTS): 0.3})
    trainer.train()
    save(trainer, out)


def save(trainer: Trainer, out: Path) -> None:
    """The whole weights, on all ranks, by the first."""
    engine = trainer.deepspeed if trainer.is_deepspeed_enabled else trainer.model_wrapped
    tensors = trainer.accelerator.get_state_dict(engine)
    if ranks.rank() == 0:
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, out)


if __name__ == "__main__":
    main()
