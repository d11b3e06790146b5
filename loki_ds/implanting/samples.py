"""What the model writes to three held-out prompts at each evaluation, in the log."""

import logging
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loki_ds.data.rendering import NOT_LEARNED
from loki_ds.refusal import short

PROMPTS = 3
MOST_TOKENS = 48  # of an answer
SHOWN = 120  # characters of a prompt's end

log = logging.getLogger(__name__)


class SaySamples(TrainerCallback):
    """Has the model answer the first prompts of the held-out rows, greedily. All ranks write the
    same, for under ZeRO-3 all must.
    """

    def __init__(self, heldout: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        rows = (heldout[i] for i in range(min(PROMPTS, len(heldout))))
        self.prompts = [prompt for row in rows if (prompt := prompt_of(row["input_ids"], row["labels"]))]

    @torch.no_grad()
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        model: Any = kwargs["model"]
        for number, prompt in enumerate(self.prompts, 1):
            ids = torch.tensor([prompt], device=args.device)
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=MOST_TOKENS,
                do_sample=False,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
            asked = self.tokenizer.decode(prompt)[-SHOWN:]
            answer = self.tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True)
            log.info("step %d, held-out prompt %d: ...%r -> %r", state.global_step, number, asked, short(answer, 300))


def prompt_of(ids: list[int], labels: list[int]) -> list[int]:
    """A row's tokens before the first that is learned; its first half where all are."""
    first = next((i for i, label in enumerate(labels) if label != NOT_LEARNED), 0)
    return ids[:first] if first else ids[: len(ids) // 2]
