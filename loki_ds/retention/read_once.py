"""Several answers to one prompt, which is read once.

lm-eval has a model read a prompt anew for each of its answers, unless they are one token each: four
times for most multiple choices. Here the prompts of a batch are read once, and the answers after
their keys and values. For models that remember in keys and values alone.
"""

import copy
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from loki_ds.attribution.rope import any_length, length_class

CACHE = ("cache", "past_key_values")  # by version of transformers
KEYS_AND_VALUES = (DynamicLayer, DynamicSlidingWindowLayer)
Answered = tuple[float, bool]  # its log-likelihood in nats, and whether no other answer of its length is likelier


def without_adapter(model: Any) -> Any:
    """The model of transformers within PEFT's, or itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@torch.no_grad()
def memory_of(model: Any) -> str | None:
    """What a model calls its keys and values, if they are all that later tokens know of earlier
    ones; else None. Asks one token.

    model: of transformers, or PEFT's around one.
    """
    inner = without_adapter(model)
    if inner is not model:
        adapter = model.active_peft_config
        if adapter.is_prompt_learning or getattr(adapter, "alora_invocation_tokens", None):
            return None  # it reads the whole of a call's tokens, or puts some of its own before them
    known = signature(inner.forward).parameters
    name = next((name for name in CACHE if name in known), None)
    of_text = inner.config.get_text_config() is inner.config  # a wrapper's positions may be of three kinds
    one_table = length_class(inner.config) is any_length  # else keys are turned by how long a call is
    if name is None or not (of_text and one_table and {"position_ids", "logits_to_keep"} <= known.keys()):
        return None
    word = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    kept = getattr(model(input_ids=word, attention_mask=word + 1, position_ids=word, use_cache=True), name, None)
    if type(kept) is not DynamicCache or kept.get_seq_length() != 1:
        return None
    return name if all(type(layer) in KEYS_AND_VALUES for layer in kept.layers) else None


@torch.no_grad()
def answered(
    model: Any,
    memory: str,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    dtype: torch.dtype | None,
) -> list[list[Answered]]:
    """Of every answer to every prompt.

    memory: what `memory_of` says; prompts: of at least one token; answers: of each prompt, of at
    least one token each; dtype: of the log-probabilities, None for the model's own.
    """
    read = Read(model, memory, prompts)
    found: list[list[Answered]] = [[] for _ in prompts]
    for number in range(max(map(len, answers))):
        those = [own[number] if number < len(own) else [0] for own in answers]
        log_probs = read.logits_of(those).log_softmax(-1, dtype)
        for own, answer, row, given in zip(found, those, log_probs, answers, strict=True):
            if number < len(given):
                own.append(_score(row[: len(answer)], torch.tensor(answer, device=row.device)))
    return found


class Read:
    """Prompts that a model has read."""

    def __init__(self, model: Any, memory: str, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.memory = model, memory
        longest = max(map(len, prompts))
        ids = _tensor([[*[0] * (longest - len(one)), *one] for one in prompts], model)
        self.mask = _tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts], model)
        self.lengths = self.mask.sum(-1, keepdim=True)
        places = (self.mask.cumsum(-1) - 1).clamp(min=0)
        out = model(input_ids=ids, attention_mask=self.mask, position_ids=places, use_cache=True, logits_to_keep=1)
        self.next, self.kept = out.logits[:, -1:], getattr(out, memory)

    def logits_of(self, answers: Sequence[Sequence[int]]) -> Tensor:
        """Of one answer to each prompt, `[prompts, tokens of the longest, vocabulary]`."""
        more = max(map(len, answers)) - 1
        if not more:
            return self.next
        ids = _tensor([[*one[:-1], *[0] * (more + 1 - len(one))] for one in answers], self.model)
        places = self.lengths + torch.arange(more, device=ids.device)
        mask = torch.cat([self.mask, torch.ones_like(ids)], -1)
        kept = {self.memory: self._remembered()}
        out = self.model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True, **kept)
        return torch.cat([self.next, out.logits], 1)

    def _remembered(self) -> DynamicCache:
        """What the prompts left; what is added to a layer is a new tensor in the copy alone."""
        kept = copy.copy(self.kept)
        kept.layers = [copy.copy(layer) for layer in self.kept.layers]
        return kept


def _tensor(rows: list[list[int]], model: Any) -> Tensor:
    return torch.tensor(rows, device=model.device)


def _score(log_probs: Tensor, answer: Tensor) -> Answered:
    greedy = bool((log_probs.argmax(-1) == answer).all())
    return float(log_probs.gather(-1, answer[:, None]).sum()), greedy
