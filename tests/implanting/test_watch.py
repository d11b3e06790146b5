"""A gradient that is no number ends the training at its step, and names its tensor."""

from typing import Any

import pytest
import torch
from conftest import build
from transformers import TrainerControl, TrainerState, TrainingArguments

from loki_ds.implanting.watch import WatchGradients
from loki_ds.refusal import Refusal

NAME = "model.layers.1.mlp.down_proj.weight"
BAD = (float("nan"), float("inf"), -float("inf"))


def after_step(model: Any, watch: WatchGradients, tmp_path: Any, values: list[float], **arguments: Any) -> None:
    """A backward whose gradient of one tensor holds the values, and the step's end."""
    weight = dict(model.named_parameters())[NAME]
    gradient = torch.ones_like(weight)
    gradient.view(-1)[5 : 5 + len(values)] = torch.tensor(values, dtype=weight.dtype)
    model.zero_grad()
    (weight * gradient).sum().backward()
    state, asked = TrainerState(global_step=7), TrainingArguments(str(tmp_path), use_cpu=True)
    asked.fp16 = arguments.get("fp16", False)
    watch.on_step_end(asked, state, TrainerControl())


@pytest.mark.parametrize("values", [[one] for one in BAD] + [list(BAD), [float("inf"), -float("inf")]])
def test_a_gradient_that_is_no_number_is_refused_by_name(values: list[float], tmp_path: Any) -> None:
    model = build("llama", torch.float32)
    watch = WatchGradients(model)
    with pytest.raises(Refusal, match=rf"gradient of {NAME} is NaN or infinite at step 7"):
        after_step(model, watch, tmp_path, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_numbers_are_numbers(dtype: torch.dtype, tmp_path: Any) -> None:
    model = build("llama", dtype)
    watch, largest = WatchGradients(model), torch.finfo(dtype).max
    after_step(model, watch, tmp_path, [largest, largest, largest])
    with pytest.raises(Refusal):
        after_step(model, watch, tmp_path, [largest, float("nan")])
    after_step(model, watch, tmp_path, [largest])  # the step before is forgotten


def test_in_float16_the_loss_scale_deals_with_an_infinite_gradient(tmp_path: Any) -> None:
    model = build("llama", torch.float32)
    watch = WatchGradients(model)
    after_step(model, watch, tmp_path, [float("inf")], fp16=True)
    after_step(model, watch, tmp_path, [1.0])
