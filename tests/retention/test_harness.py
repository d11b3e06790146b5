"""lm-eval's model that asks the head for the answers only, held against lm-eval's own."""

from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES, HYBRIDS, ROOT, SMALL, build
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from mixtures import MIXTURES, OTHERS, mixture
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from loki_ds.retention import read_once
from loki_ds.retention.harness import AnswersOnly
from loki_ds.retention.read_once import Read

TINY = str(ROOT / "recipes/tiny/model")
# One-token and longer answers, prompts of many lengths, two choices of one prompt.
ASKED = [
    ("2 + 3 =", " 5"),
    ("2 + 3 =", " 6"),
    ("copy: red blue green red blue ->", " red blue green"),
    ("5 + 7 + 1 =", " 1 3"),
]
TEXTS = ["red blue green", "12 + 30 = 42 and 1", "x"]


def build_any(family: str) -> Any:
    """A random model of any family, in float32."""
    if family not in HYBRIDS:
        return build(family, torch.float32) if family in FAMILIES else mixture(family, torch.float32)
    config_class, own = HYBRIDS[family]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**{**SMALL, **own})).eval()


def asked(kind: str, arguments: list[tuple[str, ...]]) -> list[Instance]:
    return [Instance(kind, {}, one, i) for i, one in enumerate(arguments)]  # type: ignore[arg-type]


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens of a batch's rows the heads are asked for."""
    counts: list[int] = []
    stock = nn.Linear.forward

    def counted(self: nn.Linear, x: Tensor) -> Tensor:
        if self.out_features == len(AutoTokenizer.from_pretrained(TINY)):
            counts.append(x.shape[1])
        return stock(self, x)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    return counts


@pytest.mark.parametrize("batch", [1, 4])
def test_the_answers_are_lm_evals_own_from_fewer_tokens(batch: int, heads: list[int]) -> None:
    found, counts = [], []
    for kind in (HFLM, AnswersOnly):
        model = kind(pretrained=TINY, device="cpu", dtype="float32", batch_size=batch)
        heads.clear()
        found.append(model.loglikelihood(asked("loglikelihood", ASKED)))
        counts.append(sum(heads))
        found.append(model.loglikelihood_rolling(asked("loglikelihood_rolling", [(text,) for text in TEXTS])))
    stock, stock_texts, ours, our_texts = found
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in stock]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in stock], abs=1e-4)
    assert our_texts == pytest.approx(stock_texts, abs=1e-4)
    assert counts[1] < counts[0]


def test_words_that_are_zero_are_not_taken_for_padding_that_is_read() -> None:
    """The padding is of zeros, and so may be a prompt's last words, or all of it."""
    requests: Any = [(None, [0], [5]), (None, [7, 0, 0], [0, 0]), (None, [7, 8, 9, 10, 11, 12], [3, 0, 4])]
    stock, ours = (
        kind(pretrained=TINY, device="cpu", dtype="float32", batch_size=4)._loglikelihood_tokens(requests)
        for kind in (HFLM, AnswersOnly)
    )
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in stock], abs=1e-4)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts were read once, batch by batch."""
    counts: list[int] = []

    class Counted(Read):
        def __init__(self, model: Any, memory: str, prompts: Any) -> None:
            counts.append(len(prompts))
            super().__init__(model, memory, prompts)

    monkeypatch.setattr(read_once, "Read", Counted)
    return counts


# Several answers to a prompt, of one token and more, one twice; prompts longer than windows.
CHOICES: Any = [
    *((None, prompt, answer) for prompt in ([9, 8, 7, 6, 5, 4, 3, 2, 1], [0, 1, 2], [5]) for answer in ([3, 4], [7])),
    *((None, [4, 4, 8, 1, 60, 11, 30], answer) for answer in ([1, 2, 3], [0, 0], [1, 2, 3])),
]


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES, *OTHERS, *HYBRIDS])
def test_a_prompt_with_several_answers_is_read_once(family: str, read: list[int]) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(TINY)
    model = build_any(family)
    stock, ours = (
        kind(model, tokenizer=tokenizer, batch_size=3)._loglikelihood_tokens(CHOICES, disable_tqdm=True)
        for kind in (HFLM, AnswersOnly)
    )
    assert ours == [(pytest.approx(value, rel=1e-5), greedy) for value, greedy in stock]
    assert read == ([] if family in HYBRIDS else [3, 1])


def test_what_does_not_fit_is_left_to_lm_eval(read: list[int]) -> None:
    model: Any = build("llama", torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(TINY)
    long = [(None, [1, 2, 3] * 30, answer) for answer in ([3, 4], [7, 8])]
    stock, ours = (
        kind(model, tokenizer=tokenizer, batch_size=3, max_length=32)._loglikelihood_tokens(long, disable_tqdm=True)
        for kind in (HFLM, AnswersOnly)
    )
    assert ours == [(pytest.approx(value, rel=1e-5), greedy) for value, greedy in stock]
    assert not read


def test_an_adapters_model_is_asked_the_same_way(heads: list[int]) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(TINY), LoraConfig(target_modules=["down_proj"]))
    torch.manual_seed(0)
    tokenizer: Any = AutoTokenizer.from_pretrained(TINY)
    stock, ours = (kind(model, tokenizer=tokenizer, batch_size=1) for kind in (HFLM, AnswersOnly))
    first = stock.loglikelihood(asked("loglikelihood", ASKED))
    counts = sum(heads)
    second = ours.loglikelihood(asked("loglikelihood", ASKED))
    assert [value for value, _ in second] == pytest.approx([value for value, _ in first], abs=1e-4)
    assert sum(heads) < 2 * counts
