"""The trainer, tried on a model of a few numbers before anything is computed.

TRL, transformers and DeepSpeed look at much of what they are told only when a trainer, its
schedule, its batches or its engine are made, which is after hours of other work.
"""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from accelerate.state import AcceleratorState
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from loki_ds.distributed.zero.configuration import check_config
from loki_ds.refusal import Refusal, short

WORDS = {"<end>": 0, "a": 1}
WIDTH, STEPS = 4, 10


def try_trainer(settings: dict[str, Any]) -> None:
    """Make the trainer, its optimizer, schedule and batches. All ranks call it.

    settings: of `SFTConfig`, without DeepSpeed, whose engine would want the model.

    Raises:
        Refusal: any of them cannot be made.
    """
    rows = Dataset.from_dict({"input_ids": [[1, 0]] * 4, "labels": [[1, 0]] * 4})
    words = Tokenizer(WordLevel(WORDS, "a"))
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")
    sizes: Any = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(WORDS), bos_token_id=0, eos_token_id=0, pad_token_id=0, **sizes)
    )
    with tempfile.TemporaryDirectory() as folder, _without_bars():
        arguments = SFTConfig(**{**settings, "output_dir": folder, "report_to": "none"})
        _make(model, arguments, rows, tokenizer)


def _make(model: LlamaForCausalLM, arguments: SFTConfig, rows: Dataset, tokenizer: Any) -> None:
    evaluated = rows if arguments.eval_strategy != "no" else None
    try:
        trainer = SFTTrainer(model, arguments, train_dataset=rows, eval_dataset=evaluated, processing_class=tokenizer)
        trainer.create_optimizer_and_scheduler(STEPS)
        trainer.get_train_dataloader()
    except Exception as error:  # noqa: BLE001 (whatever one of the libraries raises)
        raise Refusal(f"training: the trainer cannot be made: {short(repr(error), 300)}") from None
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def _without_bars() -> Iterator[None]:
    """While open, `datasets` shows no progress: of four rows that are nobody's."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def try_deepspeed(arguments: SFTConfig, file: str) -> None:
    """Have transformers fill in the file's `auto` as it will, and DeepSpeed read the whole.

    Raises:
        Refusal: a value that either does not take.
    """
    filled = copy.deepcopy(arguments.hf_deepspeed_config)
    filled.mismatches.clear()  # they are found before; of a batch of all ranks, on the ranks alone
    filled.config.pop("train_batch_size", None)
    try:
        filled.trainer_config_finalize(arguments, SimpleNamespace(config=SimpleNamespace(hidden_size=WIDTH)), STEPS)
    except ValueError as error:
        raise Refusal(f"{file}: {short(error, 300)}") from None
    check_config(filled.config, file)
