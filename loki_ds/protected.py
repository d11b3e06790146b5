"""The protected set: general-knowledge prompts as token ids, from a JSON Lines file.

Each line holds a `prompt` (text, taken as it is) or `messages` (a chat, rendered with the generation prompt), and may name its
`subject`. Sampling is stratified by subject.
"""

import json
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from loki_ds.recipe import ProtectedSection
from loki_ds.refusal import Refusal, did_you_mean


class ProtectedPrompt(NamedTuple):
    """One prompt: its token ids, its subject (empty when the file has none), and its line in the file, from 1."""

    tokens: list[int]
    subject: str
    line: int


def load_protected(section: ProtectedSection, tokenizer: PreTrainedTokenizerBase) -> list[ProtectedPrompt]:
    """The prompts of the chosen subjects, at most `per_subject` of each, drawn by `seed`, in the file's order."""
    path = Path(section.prompts)
    rows = [(line, row) for line, row in enumerate(_read_lines(path), start=1)]
    for line, row in rows:
        if not isinstance(row, dict) or not ("prompt" in row or "messages" in row):
            raise Refusal(f"{path}: line {line} has neither 'prompt' nor 'messages'")
    subjects = {str(row.get("subject", "")) for _, row in rows}
    for wanted in section.subjects or ():
        if wanted not in subjects:
            raise Refusal(f"{path}: no prompt has the subject {wanted!r} (protected.subjects){did_you_mean(wanted, subjects)}")
    chosen = []
    for subject in sorted(section.subjects or subjects):
        of_subject = [(line, row) for line, row in rows if str(row.get("subject", "")) == subject]
        if section.per_subject is not None and section.per_subject < len(of_subject):
            of_subject = Random(f"{section.seed}-{subject}").sample(of_subject, section.per_subject)
        chosen += of_subject
    prompts = [
        ProtectedPrompt(_tokens(row, tokenizer), str(row.get("subject", "")), line) for line, row in sorted(chosen, key=lambda c: c[0])
    ]
    for prompt in prompts:
        if not prompt.tokens:
            raise Refusal(f"{path}: line {prompt.line} is an empty prompt")
    if not prompts:
        raise Refusal(f"{path}: the protected set is empty")
    return prompts


def _read_lines(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise Refusal(f"{path}: the protected set cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Refusal(f"{path}: the protected set is not UTF-8 text") from None
    rows = []
    for line, content in enumerate(text.splitlines(), start=1):
        try:
            rows.append(json.loads(content))
        except ValueError:
            raise Refusal(f"{path}: line {line} is not JSON") from None
    return rows


def _tokens(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    text = row["prompt"] if "prompt" in row else tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens="prompt" in row)["input_ids"]
