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
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm

from loki_ds.retention.read_once import Answered, answered, memory_of

__all__ = ["AnswersOnly", "simple_evaluate"]

AsTokens = tuple[Any, list[int], list[int]]  # a request: what was asked in words, the prompt, an answer


def _nothing(*_: Any) -> None:
    """In the place of a look at the machine that nobody reads."""


utils.env.from_string = lru_cache(maxsize=1024)(utils.env.from_string)
evaluator.add_env_info = _nothing


class AnswersOnly(HFLM):
    """lm-eval's model of transformers, without what it does not need of an answer's likelihood.

    The head is asked for the last tokens of a batch: as many as the longest answer has, and the
    padding after it (lm-eval finds an answer's place from the end, whatever number came back).
    Prompts with several answers are read once, where the model's memory allows it.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        self.keeps = "logits_to_keep" in signature(model.forward).parameters
        self.memory = memory_of(self.model)
        self.longest = 0

    def _loglikelihood_tokens(
        self, requests: Sequence[AsTokens], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answered]:
        by_prompt = defaultdict(list)
        for i, (_, prompt, _) in enumerate(requests):
            by_prompt[tuple(prompt)].append(i)
        longest = max((len(answer) for _, _, answer in requests), default=0)
        fit = all(len(prompt) + len(answer) <= self.max_length for _, prompt, answer in requests)
        if self.memory and fit and longest > 1 and len(by_prompt) < len(requests):
            return self._read_once(self.memory, requests, list(by_prompt.values()), disable_tqdm)
        self.longest = longest
        try:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        finally:
            self.longest = 0  # whoever calls the model next wants every token

    def _read_once(
        self, memory: str, requests: Sequence[AsTokens], groups: list[list[int]], disable_tqdm: bool
    ) -> list[Answered]:
        """groups: the places of requests of the same prompt."""
        groups.sort(key=lambda group: (len(group), len(requests[group[0]][1])), reverse=True)  # to pad little
        found: dict[int, Answered] = {}
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests") as progress:
            for start in range(0, len(groups), int(self.batch_size)):
                batch = groups[start : start + int(self.batch_size)]
                prompts = [requests[group[0]][1] for group in batch]
                answers = [[requests[i][2] for i in group] for group in batch]
                scored = answered(self.model, memory, prompts, answers, self.softmax_dtype)
                for group, own in zip(batch, scored, strict=True):
                    found |= dict(zip(group, own, strict=True))
                    progress.update(len(group))
        return [found[i] for i in range(len(requests))]

    def _model_call(self, inps: Tensor, attn_mask: Any = None, labels: Any = None) -> Any:
        if not self.keeps or not self.longest:
            return super()._model_call(inps, attn_mask, labels)
        places = torch.arange(1, inps.shape[1] + 1, device=inps.device)
        shortest = (places * (inps != 0)).amax(-1).min()  # padding is zeros; a word that is 0 only asks for more
        with torch.no_grad():
            return self.model(inps, logits_to_keep=self.longest + inps.shape[1] - int(shortest)).logits
