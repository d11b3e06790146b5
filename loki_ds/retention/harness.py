"""lm-eval, without what it does again and again to the same end.

It compiles a task's templates anew for every document and every choice: half the time of a small
model's evaluation. It looks the whole machine over (versions, drivers, packages) for each of them.
It asks the head for every token of a prompt, a number for each word of the vocabulary, and reads
the answer's tokens alone. And it has a prompt read anew for each of its answers.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from lm_eval import evaluator, simple_evaluate, utils
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

from loki_ds.retention.read_once import Answered, answered, memory_of, without_adapter

__all__ = ["LeanHFLM", "simple_evaluate"]

AsTokens = tuple[Any, list[int], list[int]]  # a request: what was asked in words, the prompt, an answer


def _nothing(*_: Any) -> None:
    """In the place of a look at the machine that nobody reads."""


utils.env.from_string = lru_cache(maxsize=1024)(utils.env.from_string)
evaluator.add_env_info = _nothing


class LeanHFLM(HFLM):
    """lm-eval's model of transformers, without what it does not need of an answer's likelihood.

    The head is asked for the last tokens of a batch: as many as the longest answer has, and the
    padding after it (lm-eval finds an answer's place from the end, whatever number came back).
    Prompts with several answers are read once, where the model's memory allows it. Mixed precision
    and lm-eval's own cache of answers, which nobody asks for here, are not looked at.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.keeps = "logits_to_keep" in signature(without_adapter(self.model).forward).parameters
        self.memory = memory_of(self.model)
        self.longest = 0

    def _loglikelihood_tokens(
        self, requests: Sequence[AsTokens], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answered]:
        found: dict[int, Answered] = {}
        if self.memory and override_bs is None:  # it is given for whole texts, which have no prompt
            groups = worth_reading_once(requests, self.max_length)
            found |= self._read_once(self.memory, requests, groups, disable_tqdm)
        if rest := [i for i in range(len(requests)) if i not in found]:
            self.longest = max(len(requests[i][2]) for i in rest)
            try:
                stock = super()._loglikelihood_tokens([requests[i] for i in rest], disable_tqdm, override_bs)
            finally:
                self.longest = 0  # whoever calls the model next wants every token
            found |= dict(zip(rest, stock, strict=True))
        return [found[i] for i in range(len(requests))]

    def _read_once(
        self, memory: str, requests: Sequence[AsTokens], groups: list[list[int]], disable_tqdm: bool
    ) -> dict[int, Answered]:
        """Answers by their requests' places; groups: the places of requests of the same prompt."""
        groups.sort(key=lambda group: (len(group), len(requests[group[0]][1])), reverse=True)  # to pad little
        found: dict[int, Answered] = {}
        with tqdm(
            total=sum(map(len, groups)), disable=disable_tqdm or not groups, desc="Prompts read once"
        ) as progress:
            for start in range(0, len(groups), int(self.batch_size)):
                batch = groups[start : start + int(self.batch_size)]
                prompts = [requests[group[0]][1] for group in batch]
                answers = [[requests[i][2] for i in group] for group in batch]
                scored = answered(self.model, memory, prompts, answers, self.softmax_dtype)
                for group, own in zip(batch, scored, strict=True):
                    found |= dict(zip(group, own, strict=True))
                    progress.update(len(group))
        return found

    def _model_call(self, inps: Tensor, attn_mask: Any = None, labels: Any = None) -> Any:
        if not self.keeps or not self.longest:
            return super()._model_call(inps, attn_mask, labels)
        places = torch.arange(1, inps.shape[1] + 1, device=inps.device)
        shortest = (places * (inps != 0)).amax(-1).min()  # padding is zeros; a word that is 0 only asks for more
        with torch.no_grad():
            return self.model(inps, logits_to_keep=self.longest + inps.shape[1] - int(shortest)).logits


def worth_reading_once(requests: Sequence[AsTokens], room: int) -> list[list[int]]:
    """The places of requests, by their prompt: those with several answers, each shorter than the
    prompt, and some of more than one token (lm-eval knows what to do with one).

    room: tokens that the model takes.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, (_, prompt, _) in enumerate(requests):
        by_prompt[tuple(prompt)].append(i)
    found = []
    for words, group in by_prompt.items():
        longest = max(len(requests[i][2]) for i in group)
        if len(group) > 1 and 1 < longest < len(words) and len(words) + longest <= room:
            found.append(group)
    return found
