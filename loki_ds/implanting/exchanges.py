"""What the base wrote before it trained: prompts, its answers, and why some are left out."""

from collections.abc import Sequence
from typing import Any, TypedDict

from transformers import PreTrainedTokenizerBase

from loki_ds.implanting.rehearsal_rows import Text


class Exchange(TypedDict):
    """A prompt, what the base answers, and why that is left out, if it is.

    kind: of a counter-example, or `base`; place: of the row that it is made from.
    """

    kind: str
    place: str
    question: str
    prompt: str
    answer: str
    left_out: str | None


def exchanges_of(name: str, exchanges: Sequence[Exchange]) -> list[Exchange]:
    """Those of one of the prompts: `base`, or `boundary`, all other kinds."""
    return [exchange for exchange in exchanges if (exchange["kind"] == "base") == (name == "base")]


def texts_of(name: str, exchanges: Sequence[Exchange], tokenizer: PreTrainedTokenizerBase) -> list[Text]:
    """What is to be rehearsed of one of the prompts."""
    kept = [exchange for exchange in exchanges_of(name, exchanges) if exchange["left_out"] is None]
    return [Text.answered(ids_of(each["prompt"], tokenizer), ids_of(each["answer"], tokenizer)) for each in kept]


def ids_of(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A text's tokens, without what the tokenizer adds to a whole one."""
    encoded: Any = tokenizer(text, add_special_tokens=False)
    return encoded["input_ids"]
