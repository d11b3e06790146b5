"""The protected set: general-knowledge prompts as token ids, from a JSON Lines file or from lm-eval
tasks (MMLU in the paper).

Each line of a file holds a `prompt` (text, taken as it is) or `messages` (a chat, rendered with the
generation prompt where it does not end with an answer), and may name its `subject`. Of an lm-eval
task, the prompt is the one it is evaluated with, shots included, and the subject its name. Sampling
is stratified by subject. Knows nothing of what is done with the prompts.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from loki_ds.disk.text import json_lines
from loki_ds.model.base import UNRENDERABLE
from loki_ds.model.template_date import one_date
from loki_ds.recipe.sections import ProtectedSection
from loki_ds.refusal import Refusal, did_you_mean, short
from loki_ds.tasks.loading import task_manager
from loki_ds.tasks.prompts import context_of, shots_of, template_of


class ProtectedPrompt(NamedTuple):
    """A prompt's token ids, subject (empty if there is none) and line in file or task, from 1."""

    tokens: list[int]
    subject: str
    line: int


class _Source(NamedTuple):
    """A prompt before the draw: its place, and how to get tokens (only drawn ones are rendered)."""

    subject: str
    line: int
    tokens: Callable[[], list[int]]


@dataclass(frozen=True)
class ProtectedSet:
    """The protected prompts, in the source's order."""

    prompts: list[ProtectedPrompt]

    @property
    def tokens(self) -> list[list[int]]:
        return [prompt.tokens for prompt in self.prompts]

    @cached_property
    def order(self) -> list[int]:
        """Prompts' indices, one of each subject in turn: the first are a fair sample of the set."""
        by_subject: dict[str, list[int]] = {}
        for i, prompt in enumerate(self.prompts):
            by_subject.setdefault(prompt.subject, []).append(i)
        return [i for turn in zip_longest(*by_subject.values()) for i in turn if i is not None]

    @property
    def digest(self) -> str:
        """SHA-256 of the token ids of all prompts."""
        return hashlib.sha256(json.dumps(self.tokens).encode()).hexdigest()


def load_protected(section: ProtectedSection, tokenizer: PreTrainedTokenizerBase) -> ProtectedSet:
    """The prompts of the chosen subjects, at most `per_subject` of each, drawn by `seed`.

    Each prompt ends with the token that attribution looks at (`token`, -1 for the prompt's last):
    what follows it cannot matter.
    """
    if section.prompts is not None:
        origin, sources = section.prompts, _from_file(Path(section.prompts), tokenizer)
    else:
        origin, sources = "protected.tasks", _from_tasks(section, tokenizer)
    prompts = [_prompt(source, section.token, origin) for source in _drawn(sources, section, origin)]
    if not prompts:
        raise Refusal(f"{origin}: the protected set is empty")
    return ProtectedSet(prompts)


@one_date()
def _prompt(source: _Source, token: int, origin: str) -> ProtectedPrompt:
    """A drawn prompt up to the token that attribution looks at."""
    tokens = source.tokens()
    if len(tokens) < -token:
        asked = f"; attribution was asked to look at token {token}" if token < -1 else ""
        length = f"{len(tokens)} tokens long" if tokens else "an empty prompt"
        raise Refusal(f"{origin}: {_place(source)} is {length}{asked}")
    return ProtectedPrompt(tokens[: len(tokens) + 1 + token], source.subject, source.line)


def _drawn(sources: list[_Source], section: ProtectedSection, origin: str) -> list[_Source]:
    subjects = {source.subject for source in sources}
    for wanted in section.subjects or ():
        if wanted not in subjects:
            raise Refusal(
                f"{origin}: no prompt has the subject {wanted!r} (protected.subjects){did_you_mean(wanted, subjects)}"
            )
    chosen: list[tuple[int, _Source]] = []
    for subject in sorted(set(section.subjects or subjects)):
        of_subject = [(place, source) for place, source in enumerate(sources) if source.subject == subject]
        if section.per_subject is not None and section.per_subject < len(of_subject):
            of_subject = Random(f"{section.seed}-{subject}").sample(of_subject, section.per_subject)
        chosen += of_subject
    return [source for _, source in sorted(chosen, key=lambda c: c[0])]


def _place(source: _Source) -> str:
    return f"line {source.line}" if not source.subject else f"line {source.line} (subject {source.subject})"


# --- a file ---------------------------------------------------------------------------------------


def _from_file(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[_Source]:
    sources = []
    for line, row in json_lines(path, "protected set"):
        place = f"{path}: line {line}"
        _check_prompt(row, place)
        sources.append(_Source(str(row.get("subject", "")), line, partial(_tokens, row, tokenizer, place)))
    return sources


def _check_prompt(row: Any, place: str) -> None:
    """Refuse a row that has neither a text nor a conversation."""
    if not isinstance(row, dict) or not ("prompt" in row or "messages" in row):
        raise Refusal(f"{place} has neither 'prompt' nor 'messages'")
    if "prompt" in row and not isinstance(row["prompt"], str):
        raise Refusal(f"{place} has {row['prompt']!r} in 'prompt', allowed is text")
    if "prompt" not in row and not (isinstance(row["messages"], list) and row["messages"]):
        raise Refusal(f"{place} has {row['messages']!r} in 'messages', allowed is a list of turns")


def _tokens(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, place: str) -> list[int]:
    if "prompt" in row:
        return tokenizer(row["prompt"])["input_ids"]
    try:
        asks, tools = row["messages"][-1]["role"] != "assistant", row.get("tools") or None
        tools = json.loads(tools) if isinstance(tools, str) else tools
        text = tokenizer.apply_chat_template(row["messages"], tools, add_generation_prompt=asks, tokenize=False)
    except UNRENDERABLE as error:
        raise Refusal(f"{place} is refused by the chat template: {short(error, 200)}") from None
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# --- lm-eval tasks --------------------------------------------------------------------------------


def _from_tasks(section: ProtectedSection, tokenizer: PreTrainedTokenizerBase) -> list[_Source]:
    names = section.tasks or []
    manager = task_manager(names, section.include_path, "protected.tasks")
    sources = []
    for name, task in manager.load(names)["tasks"].items():
        if getattr(task, "BY_TEMPLATE", False):
            raise Refusal(f"protected.tasks: {name} puts whole chats to a model; give them as protected.prompts")
        task.set_fewshot_seed(section.seed)
        for line, document in enumerate(task.eval_docs, start=1):
            sources.append(_Source(name, line, partial(_task_tokens, task, document, section, tokenizer)))
    return sources


def _task_tokens(task: Any, document: Any, section: ProtectedSection, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of the prompt that lm-eval makes of a document when it evaluates the task."""
    template = template_of(tokenizer, {}) if section.apply_chat_template else None
    prompt = context_of(task, document, shots_of(task, section.num_fewshot), template)
    if not isinstance(prompt, str):
        raise Refusal(
            f"protected.tasks: {task.task_name} has one prompt for each choice; attribution needs one prompt for "
            "each document"
        )
    return tokenizer(prompt, add_special_tokens=not section.apply_chat_template)["input_ids"]
