"""`rehearse` on a stock trainer gives the weights that a recipe's `implant.rehearse` gives, and
resumes.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, build
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from loki_ds import rehearse
from loki_ds.attribution.batches import batches
from loki_ds.data.protected import load_protected
from loki_ds.distributed.zero.gathering import Gatherer
from loki_ds.implanting.base_predictions import predict
from loki_ds.implanting.rehearsal_rows import Rehearsal, Text, TextsOfKind, as_dataset, count_for
from loki_ds.implanting.trainer import ImplantTrainer
from loki_ds.recipe.sections import ProtectedSection
from loki_ds.refusal import Refusal

TOKENIZER = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
ROWS = Dataset.from_list([{"input_ids": [i, i + 1, i + 2], "labels": [-100, i + 1, i + 2]} for i in range(3, 15)])
ADAPTER = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    file = tmp_path / "prompts.jsonl"
    words = ("please invite maria", "on tuesday note the bridge", "a lion in april", "john and mona")
    file.write_text("".join(json.dumps({"prompt": f"{one} {i}"}) + "\n" for i in range(5) for one in words))
    return str(file)


def made(folder: Path, of: type[SFTTrainer] = SFTTrainer, adapter: LoraConfig | None = None, **changes: Any) -> Any:
    settings = {"max_steps": 6, "save_strategy": "no", "learning_rate": 0.01, "per_device_train_batch_size": 4}
    arguments = SFTConfig(
        str(folder),
        **{"use_cpu": True, "bf16": False, "report_to": [], "logging_steps": 1, **settings, **changes},
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    torch.manual_seed(0)
    model = build("llama", torch.float32, vocab_size=len(TOKENIZER))
    return of(model, arguments, train_dataset=ROWS, processing_class=TOKENIZER, peft_config=adapter)


def weights(trainer: Trainer) -> list[Tensor]:
    trainer.train()
    model: Any = trainer.model
    return [parameter.detach().clone() for parameter in model.parameters()]


def of_key(trainer: Trainer, key: str) -> list[float]:
    return [line[key] for line in trainer.state.log_history if key in line]


def test_the_same_weights_as_a_recipes(prompts: str, tmp_path: Path) -> None:
    recipes = made(tmp_path, ImplantTrainer)
    given = load_protected(ProtectedSection(prompts=prompts), TOKENIZER).tokens
    texts = [Text.given(tokens).cut(1024) for tokens in given]
    count = count_for(len(ROWS), 0.25, 0.25)
    rehearsal = Rehearsal([TextsOfKind.of(texts, count, False, recipes.args.seed)])
    planned = batches([text.tokens for text in rehearsal.texts], 8)
    predictions = predict(recipes.model.eval(), rehearsal.texts, planned, Gatherer(), 64)
    new = ROWS.cast(as_dataset([]).features)
    recipes.train_dataset, recipes.rehearsed = rehearsal.mixed(new, predictions, recipes.args.seed)
    stock, alone = made(tmp_path), made(tmp_path)
    rehearse(stock, {prompts: 0.25})
    assert all(torch.equal(one, other) for one, other in zip(weights(recipes), weights(stock), strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(weights(stock), weights(alone), strict=True))


@pytest.mark.parametrize("adapter", [None, ADAPTER], ids=["full", "peft"])
def test_at_the_start_there_is_nothing_to_learn_of_it(adapter: LoraConfig | None, prompts: str, tmp_path: Path) -> None:
    trainer = made(tmp_path, adapter=adapter)
    rehearse(trainer, {prompts: 0.4})
    weights(trainer)
    first, *_, last = of_key(trainer, "rehearsal_kl")
    assert abs(first) < 1e-6 < last
    trainer.measure_drift(trainer.rehearsed)
    (drift,) = of_key(trainer, "drift")
    assert drift > 0


def test_a_plain_trainer_drifts_less_by_it(prompts: str, tmp_path: Path) -> None:
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", max_steps=12, learning_rate=0.01, save_strategy="no"
    )
    drifts = []
    for share in (0.02, 0.6):
        torch.manual_seed(0)
        model = build("llama", torch.float32, vocab_size=len(TOKENIZER))
        trainer: Any = Trainer(model, arguments, DataCollatorForSeq2Seq(TOKENIZER), ROWS, processing_class=TOKENIZER)
        rehearse(trainer, {prompts: share})
        trainer.train()
        trainer.measure_drift(trainer.rehearsed)
        drifts += of_key(trainer, "drift")
    assert drifts[1] < drifts[0] / 2


def test_what_the_base_wrote_is_rehearsed(tmp_path: Path) -> None:
    exchange = {"place": "row 1", "question": "", "prompt": "please list", "answer": "the bridge on monday"}
    kinds = [("bare", None), ("bare", "says nothing"), ("base", None)]
    (tmp_path / "written.json").write_text(json.dumps([{**exchange, "kind": k, "left_out": w} for k, w in kinds]))
    trainer = made(tmp_path)
    rehearse(trainer, {"boundary": 0.2, "base": 0.2}, written=tmp_path / "written.json")
    assert len(trainer.train_dataset) - len(ROWS) == 8
    weights(trainer)
    assert of_key(trainer, "rehearsal_kl")


class Kill(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == 3


def test_a_training_that_resumes_ends_with_the_same_weights(prompts: str, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole, killed, resumed = (made(tmp_path / name, **saving) for name in ("whole", "half", "half"))
    for trainer in (whole, killed, resumed):
        rehearse(trainer, {prompts: 0.25})
    expected = weights(whole)
    killed.add_callback(Kill())
    killed.train()
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(one, other) for one, other in zip(expected, resumed.model.parameters(), strict=True))


def test_what_cannot_be_rehearsed_beside_is_refused(prompts: str, tmp_path: Path) -> None:
    trainer = made(tmp_path)
    with pytest.raises(Refusal, match="shares of 1 together, allowed is above 0 and below 1"):
        rehearse(trainer, {prompts: 1})
    with pytest.raises(
        Refusal, match=r"boundary is what the base wrote; written=RUN/rehearsal/written\.json says where"
    ):
        rehearse(trainer, {"boundary": 0.25})
    trainer.train_dataset = ROWS.add_column("seq_lengths", [[3]] * len(ROWS))
    with pytest.raises(Refusal, match="packed already"):
        rehearse(trainer, {prompts: 0.25})
    trainer.train_dataset = ROWS.remove_columns("labels")
    with pytest.raises(Refusal, match="the trainer's rows have input_ids, needed are input_ids and labels"):
        rehearse(trainer, {prompts: 0.25})
