"""lm-eval's model with less work, held against lm-eval's own."""

from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES, HYBRIDS, ROOT, SMALL, build
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from mixtures import mixture
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from loki_ds.retention.harness import LeanHFLM

TINY = str(ROOT / "recipes/tiny/model")
TOKENIZER: Any = AutoTokenizer.from_pretrained(TINY)
WORDS = len(TOKENIZER)
# One-token and longer answers; no prompt twice.
ASKED = [("2 + 3 =", " 5"), ("copy: red blue green red blue ->", " red blue green"), ("5 + 7 + 1 =", " 1 3")]
TEXTS = ["red blue green", "12 + 30 = 42 and 1", "x"]
# Several answers to a prompt, of one token and more, one twice; prompts longer than windows.
CHOICES: Any = [
    *((None, prompt, answer) for prompt in ([9, 8, 7, 6, 5, 4, 3, 2, 1], [0, 1, 2]) for answer in ([3, 4], [7])),
    *((None, [5], answer) for answer in ([3, 4], [7])),  # no longer than its answers
    *((None, [4, 4, 8, 1, 60, 11, 30], answer) for answer in ([1, 2, 3], [0, 0], [1, 2, 3])),
]


def build_any(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A random model of any family."""
    if family not in HYBRIDS:
        return build(family, dtype) if family in FAMILIES else mixture(family, dtype)
    config_class, own = HYBRIDS[family]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**{**SMALL, **own})).eval()


def asked(kind: str, arguments: list[tuple[str, ...]]) -> list[Instance]:
    return [Instance(kind, {}, one, i) for i, one in enumerate(arguments)]  # type: ignore[arg-type]


def of_tokens(kind: type[HFLM], model: Any, requests: Any, **settings: Any) -> list[tuple[float, bool]]:
    lm: Any = kind(model, tokenizer=TOKENIZER, **{"batch_size": 3, **settings})
    return lm._loglikelihood_tokens(requests, disable_tqdm=True)


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens of a batch's rows the tiny model's head is asked for, call by call."""
    counts: list[int] = []
    stock = nn.Linear.forward

    def counted(self: nn.Linear, x: Tensor) -> Tensor:
        if self.out_features == WORDS:
            counts.append(x.shape[1])
        return stock(self, x)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    return counts


@pytest.mark.parametrize("batch", [1, 3])
def test_the_answers_are_lm_evals_own_from_fewer_tokens(batch: int, heads: list[int]) -> None:
    found, counts = [], []
    for kind in (HFLM, LeanHFLM):
        model: Any = kind(pretrained=TINY, device="cpu", dtype="float32", batch_size=batch)
        heads.clear()
        found.append(model.loglikelihood(asked("loglikelihood", ASKED)))
        counts.append(list(heads))
        found.append(model.loglikelihood_rolling(asked("loglikelihood_rolling", [(text,) for text in TEXTS])))
    stock, stock_texts, ours, our_texts = found
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in stock]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in stock], abs=1e-4)
    assert our_texts == pytest.approx(stock_texts, abs=1e-4)
    longest = max(len(TOKENIZER.encode(answer)) for _, answer in ASKED)
    padding = counts[0][0] - min(len(TOKENIZER.encode("".join(one))) - 1 for one in ASKED)
    assert counts[1] == ([longest] * 3 if batch == 1 else [longest + padding])
    assert sum(counts[1]) < sum(counts[0])


def test_words_that_are_zero_are_not_taken_for_padding_that_is_read() -> None:
    """The padding is of zeros, and so may be a prompt's last words, or all of it."""
    requests: Any = [(None, [0], [5]), (None, [7, 0, 0], [0, 0]), (None, [7, 8, 9, 10, 11, 12], [3, 0, 4])]
    stock, ours = (of_tokens(kind, build_any("llama"), requests) for kind in (HFLM, LeanHFLM))
    assert ours == [(pytest.approx(value, rel=1e-5), greedy) for value, greedy in stock]


@pytest.mark.parametrize("family", ["gemma2", "qwen3 moe", "gpt-2", next(iter(HYBRIDS))])
def test_any_kind_of_model_is_asked_as_lm_eval_asks(family: str) -> None:
    model = build_any(family)
    stock, ours = (of_tokens(kind, model, CHOICES) for kind in (HFLM, LeanHFLM))
    assert ours == [(pytest.approx(value, rel=1e-5), greedy) for value, greedy in stock]


def test_in_bfloat16_the_answers_are_as_near_as_bfloat16_is() -> None:
    """lm-eval's own differ as much from those in float32."""
    half, whole = build_any("llama", torch.bfloat16), build_any("llama")
    stock, ours, exact = (
        torch.tensor([value for value, _ in of_tokens(kind, model, CHOICES)])
        for kind, model in ((HFLM, half), (LeanHFLM, half), (HFLM, whole))
    )
    assert (ours - exact).abs().max() <= 2 * (stock - exact).abs().max()


def test_an_adapters_model_is_asked_the_same_way() -> None:
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["down_proj"], init_lora_weights=False)
    model = get_peft_model(build("llama", torch.float32), lora).eval()
    stock, ours = (of_tokens(kind, model, CHOICES) for kind in (HFLM, LeanHFLM))
    assert ours == [(pytest.approx(value, rel=1e-5), greedy) for value, greedy in stock]


def test_an_adapter_with_words_of_its_own_is_asked_the_same_way() -> None:
    torch.manual_seed(0)
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(build("llama", torch.float32), prompts).eval()
    stock, ours = (of_tokens(kind, model, CHOICES) for kind in (HFLM, LeanHFLM))
    assert ours == [(pytest.approx(value, rel=1e-5), greedy) for value, greedy in stock]
