"""lm-eval, without what it does again and again to the same end.

It compiles a task's templates anew for every document and every choice: half the time of a small
model's evaluation. It looks the whole machine over (versions, drivers, packages) for each of them.
It asks the head for every token of a prompt, a number for each word of the vocabulary, and reads
the answer's tokens alone.
"""

from collections.abc import Sequence
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from lm_eval import evaluator, simple_evaluate, utils
from lm_eval.models.huggingface import HFLM
from torch import Tensor

__all__ = ["LeanHFLM", "simple_evaluate"]

AsTokens = tuple[Any, list[int], list[int]]  # a request: what was asked in words, the prompt, an answer


def _nothing(*_: Any) -> None:
    """In the place of a look at the machine that nobody reads."""


utils.env.from_string = lru_cache(maxsize=1024)(utils.env.from_string)
evaluator.add_env_info = _nothing
evaluator.get_git_commit_hash = _nothing  # of the folder that one stands in


class LeanHFLM(HFLM):
    """lm-eval's model of transformers, without what it does not need of an answer's likelihood.

    The head is asked for the last tokens of a batch: as many as the longest answer has, and the
    padding after it (lm-eval finds an answer's place from the end, whatever number came back).
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.keeps = "logits_to_keep" in signature(_inner(self.model).forward).parameters
        self.longest = 0

    def _loglikelihood_tokens(
        self, requests: Sequence[AsTokens], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        self.longest = max((len(answer) for _, _, answer in requests), default=0)
        try:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        finally:
            self.longest = 0  # whoever calls the model next wants every token

    def _model_call(self, inps: Tensor, attn_mask: Any = None, labels: Any = None) -> Any:
        if not self.keeps or not self.longest:
            return super()._model_call(inps, attn_mask, labels)
        places = torch.arange(1, inps.shape[1] + 1, device=inps.device)
        shortest = (places * (inps != 0)).amax(-1).min()  # padding is zeros; a word that is 0 only asks for more
        with torch.no_grad():
            return self.model(inps, logits_to_keep=self.longest + inps.shape[1] - int(shortest)).logits


def _inner(model: Any) -> Any:
    """The model of transformers within PEFT's, or itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
