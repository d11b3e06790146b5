"""What the head is asked for, held against TRL's own trainer on the same batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, build
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl.trainer import utils

from loki_ds.data.rendering import NOT_LEARNED
from loki_ds.implanting.trainer import ImplantTrainer

IDS = torch.arange(20).view(2, 10)
LABELS = IDS.where(torch.tensor([[0] * 7 + [1] * 3, [0] * 9 + [1]]).bool(), NOT_LEARNED)


def taught(trainer_class: type[SFTTrainer], folder: Path, labels: Tensor) -> tuple[Any, SFTTrainer]:
    """A trainer's model after one backward."""
    arguments = SFTConfig(
        str(folder), use_cpu=True, bf16=False, report_to=[], dataset_kwargs={"skip_prepare_dataset": True}
    )
    rows = Dataset.from_dict({"input_ids": IDS.tolist(), "labels": labels.tolist()})
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
    trainer = trainer_class(build("llama", torch.float32), arguments, train_dataset=rows, processing_class=tokenizer)
    inputs = {"input_ids": IDS, "labels": labels, "attention_mask": torch.ones_like(IDS)}
    trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(4)).backward()
    return trainer.model, trainer


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions the head is asked for, call by call."""
    counts: list[int] = []
    stock = utils._ChunkedLogProbFunction.apply

    def counted(hidden: Tensor, *arguments: Any) -> Any:
        counts.append(len(hidden))
        return stock(hidden, *arguments)

    monkeypatch.setattr(utils._ChunkedLogProbFunction, "apply", counted)
    return counts


def test_the_head_is_asked_for_the_learned_tokens_alone(asked: list[int], tmp_path: Path) -> None:
    (theirs, stock), (ours, trainer) = (taught(one, tmp_path, LABELS) for one in (SFTTrainer, ImplantTrainer))
    assert asked == [18, 4]
    for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-7), name
    for name, values in stock._metrics["train"].items():
        assert trainer._metrics["train"][name] == pytest.approx(values), name


def test_a_batch_without_a_learned_token_teaches_nothing(asked: list[int], tmp_path: Path) -> None:
    ours, _ = taught(ImplantTrainer, tmp_path, torch.full_like(IDS, NOT_LEARNED))
    assert asked == [0]
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in ours.parameters())


def test_a_step_runs_the_model_once(tmp_path: Path) -> None:
    """TRL makes the outputs that nobody asked for by another pass."""
    _, trainer = taught(ImplantTrainer, tmp_path, LABELS)
    model: Any = trainer.model
    passes: list[int] = []
    model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    trainer.compute_loss(model, {"input_ids": IDS, "labels": LABELS, "attention_mask": torch.ones_like(IDS)})
    assert len(passes) == 1
