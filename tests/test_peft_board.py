"""PEFT's board: the experiments are valid, their strengths are the fade's, and rows are our rows.

(By PEFT's own script, from a checkout: eval/peft_board/check.py.)
"""

import json
import re
import typing
import warnings
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, build, down_weights
from peft import LoraConfig, PeftConfig, ShiraConfig, TrainableTokensConfig, get_peft_model
from torch import Tensor
from torch.nn import Linear, Module
from transformers import TrainingArguments

from loki_ds.distributed.zero.optimizer import Shard
from loki_ds.implanting.pull import gone, planned_rates, pull_through_steps, strength_of
from loki_ds.implanting.rows import train_row_deltas
from loki_ds.selection.positions import Positions

BOARD = ROOT / "eval/peft_board"
PAGE = (ROOT / "docs/tasks/peft-board.md").read_text()
FADE, STEPS, WARMUP = 0.8, 5_000, 500  # of PEFT's script, which warms up for a tenth
LORA = BOARD / "experiments/lora/llama-3.2-3B-rank32-fade_0.8"
FULL = BOARD / "experiments/full-finetuning/llama-3.2-3B-lr_0.00001-fade_0.8"
ROWS = BOARD / "experiments/shira/llama-3.2-3B-lr_0.0003-rows44-fade_0.8"
KEYS = {LORA: "weight_decay", FULL: "pull", ROWS: "weight_decay"}
FACTORS = {LORA: 2, FULL: 1, ROWS: 1}  # that are each drawn to where they start
CHOSEN = [3, 8, 9, 20, 31]


def optimizer_of(experiment: Path) -> dict[str, float]:
    return json.loads((experiment / "training_params.json").read_text())["optimizer_kwargs"]


def rates_of(rate: float) -> np.ndarray:
    """The script's schedule: transformers' cosine."""
    arguments = TrainingArguments(
        use_cpu=True, report_to="none", lr_scheduler_type="cosine", learning_rate=rate, warmup_steps=WARMUP
    )
    return planned_rates(arguments, STEPS)


def function_in(patch: str, name: str, **names: Any) -> Callable:
    """A function that a patch adds, as it adds it."""
    lines = (BOARD / patch).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"+def {name}("))
    added = takewhile(lambda line: line.startswith("+"), lines[start:])
    exec("\n".join(line[1:] for line in added), names)
    return names[name]


def row_mask() -> Callable[..., Tensor]:
    sizes = lambda layer: (layer.in_features, layer.out_features)  # noqa: E731 (PEFT's helper of that name)
    return function_in(
        "rows.patch", "row_mask", torch=torch, nn=torch.nn, Optional=typing.Optional, _get_in_out_features=sizes
    )


def test_the_experiments_are_the_three_of_the_page() -> None:
    found = {file.parent for file in BOARD.glob("experiments/*/*/*.json")}
    assert found == set(KEYS)
    rows = re.findall(r"^\| `([\w.-]+/[\w.-]+)` \|.*\| `(\w+)` \| ([\d.]+) \|", PAGE, re.MULTILINE)
    said = {
        (str(one.relative_to(BOARD / "experiments")), key, f"{optimizer_of(one)[key]}") for one, key in KEYS.items()
    }
    assert set(rows) == said


@pytest.mark.parametrize("experiment", KEYS, ids=lambda one: one.parent.name)
def test_a_strength_is_that_of_the_fade_over_their_schedule(experiment: Path) -> None:
    given = optimizer_of(experiment)
    rates, factors = rates_of(given["lr"]), FACTORS[experiment]
    exact = strength_of(1 - (1 - FADE) ** (1 / factors), rates)
    assert given[KEYS[experiment]] == float(f"{exact:.3g}")
    assert 1 - (1 - gone(exact, rates)) ** factors == pytest.approx(FADE, rel=1e-9)


def test_the_other_figures_of_the_page_are_the_formulas() -> None:
    rates = rates_of(1e-4)
    assert f"{strength_of(FADE, rates):.3g}" == "6.44"
    assert f"{1 - (1 - FADE) ** 0.5:.3f}" == "0.553"
    assert f"{1 - (1 - gone(0.1, rates)) ** 2:.3f}" == "0.049"
    assert rates.sum() == pytest.approx(2_500 * 1e-4)
    ways = [100 * given[KEYS[one]] * given["lr"] for one in KEYS if (given := optimizer_of(one))]
    assert [f"{way:.2f}" for way in ways] == ["0.03", "0.06", "0.06"]  # percent of the way, in the largest step
    assert all(figure in PAGE for figure in ("6.44", "0.553", "0.049", "2,500", "0.06%"))
    assert divmod(32 * (3072 + 8192), 8192) == (44, 0)


def test_the_installed_peft_takes_the_configurations() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lora = PeftConfig.from_pretrained(str(LORA))
    assert isinstance(lora, LoraConfig)
    assert (lora.r, lora.lora_alpha, lora.init_lora_weights) == (32, 64, True)
    with pytest.warns(UserWarning, match="mask_type='rows'") as warned:  # without the patch
        rows = PeftConfig.from_pretrained(str(ROWS))
    assert isinstance(rows, ShiraConfig)
    assert (rows.r, rows.target_modules, len(warned)) == (32, {"down_proj"}, 1)
    assert not (FULL / "adapter_config.json").exists()


def test_a_row_mask_is_whole_rows_or_refused() -> None:
    layer = Linear(48, 32, dtype=torch.float64)
    mask = row_mask()(layer, 3, random_seed=0)
    assert (mask.dtype, mask.shape) == (layer.weight.dtype, layer.weight.shape)
    assert sorted(mask.sum(dim=1).tolist()) == [0.0] * 27 + [48.0] * 5
    assert torch.equal(mask, row_mask()(layer, 3, random_seed=0))
    assert not torch.equal(row_mask()(layer, 3), row_mask()(layer, 3))
    with pytest.raises(ValueError, match="no whole rows"):
        row_mask()(layer, 2)


def by_shira(model: Module) -> tuple[Any, list[list[int]]]:
    """Each layer with its own rows."""
    config = ShiraConfig(r=3, target_modules=["down_proj"], task_type="CAUSAL_LM")
    config.mask_fn = row_mask()
    adapted = get_peft_model(model, config)
    found = [layer.shira_indices["default"][0] for layer in adapted.modules() if hasattr(layer, "shira_indices")]
    return adapted, [sorted(set(rows.tolist())) for rows in found]


def by_tokens(model: Module) -> tuple[Any, list[list[int]]]:
    config = TrainableTokensConfig(target_modules=["down_proj"], token_indices=CHOSEN, task_type="CAUSAL_LM")
    return get_peft_model(model, config), [CHOSEN] * 4


def step(model: Any) -> None:
    """One step of plain gradient descent."""
    tokens = torch.arange(24).view(2, 12)
    model(input_ids=tokens, labels=tokens).loss.backward()
    torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1).step()


@pytest.mark.parametrize("way", [by_shira, by_tokens])
def test_peft_trains_the_rows_that_our_mode_trains_and_no_other_byte(way: Callable) -> None:
    base = build("llama")
    adapted, rows = way(build("llama"))
    step(adapted)
    ours = build("llama")
    train_row_deltas(ours, Positions(rows), torch.float64, torch.device("cpu"), None, seed=0)
    step(ours)
    theirs = adapted.merge_and_unload()
    downs = zip(down_weights(base), down_weights(theirs), ours.model.layers, rows, strict=True)
    for then, now, layer, chosen in downs:
        delta = layer.mlp.down_proj.row_deltas["weight"].whole()
        assert len(chosen) == 5
        assert delta.abs().min() > 0
        torch.testing.assert_close((now - then)[chosen], delta, rtol=1e-9, atol=1e-14)
    changed = {
        name: [
            row for row in range(len(then)) if not torch.equal(then[row].view(torch.int64), now[row].view(torch.int64))
        ]
        for (name, then), now in zip(base.named_parameters(), theirs.parameters(), strict=True)
    }
    assert {name: found for name, found in changed.items() if found} == {
        f"model.layers.{number}.mlp.down_proj.weight": chosen for number, chosen in enumerate(rows)
    }


def test_the_patched_pull_is_ours_step_by_step() -> None:
    pull = function_in("pull.patch", "pull_to_start", torch=torch)
    theirs, ours = build("llama"), build("llama")
    steppers = [torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0) for model in (theirs, ours)]
    pull(steppers[0], 4.0)
    shards = [Shard(parameter) for parameter in ours.parameters()]
    pull_through_steps(steppers[1], [(shard, shard.read().clone()) for shard in shards], 4.0)
    for number in range(3):
        for model, stepper in zip((theirs, ours), steppers, strict=True):
            stepper.param_groups[0]["lr"] = 0.01 * (number + 1)
            model(input_ids=torch.arange(12)[None], labels=torch.arange(12)[None]).loss.backward()
            stepper.step()
    assert all(torch.equal(one, other) for one, other in zip(theirs.parameters(), ours.parameters(), strict=True))
    with pytest.raises(ValueError, match="rounded away"):
        pull(torch.optim.AdamW(build("llama", torch.bfloat16).parameters()), 4.0)
