"""Training on ranks: modes x ZeRO stages x optimizers keep every other byte, what leaves a run
agrees.
"""

import json
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import in_mode
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distributed.conftest import (
    BFLOAT16,
    ROOT,
    STAGES,
    asked_for,
    distance,
    launch,
    launch_all,
    refuse_all,
    write_configurations,
)
from loki_ds import Positions, apply_implant

BASE = ROOT / "recipes/tiny/model"
ROWS = [[0, 5, 77], [], [3], [127], [1, 2], [64]]  # layers of unequal numbers, and one with none
SHORT = ["training.max_steps=3", "training.logging_steps=1", "training.warmup_steps=0"]
OPTIMIZERS = {
    "adamw": ["training.optim=adamw_torch"],
    "adafactor": ["training.optim=adafactor"],
    "sgd": ["training.optim=sgd", "training.optim_args=momentum=0.9", "training.learning_rate=0.1"],
}
MODES = ("mask", "rows", "lora")
SMALLER = {"mask": "training.weight_decay=0.1", "rows": "implant.pull=0.1", "lora": "implant.pull=0.1"}
# What is not a matter of mode, stage and optimizer alone.
OFFLOAD = "deepspeed=launch/zero3_offload.json"
SPECIAL = {
    "mask offloaded": ["implant.mode=mask", OFFLOAD],
    "rows offloaded": [*in_mode("rows"), OFFLOAD],
    "mask bfloat16 zero2": ["implant.mode=mask", "deepspeed=launch/zero2.json", *BFLOAT16],
    "mask bfloat16 zero3": ["implant.mode=mask", *BFLOAT16],
    "rows bfloat16 zero3": [*in_mode("rows"), *BFLOAT16],
    "mask accumulating and clipped": [
        "implant.mode=mask",
        "training.gradient_accumulation_steps=2",
        "training.max_grad_norm=0.1",
    ],
    "rows accumulating and clipped": [
        *in_mode("rows"),
        "training.gradient_accumulation_steps=2",
        "training.max_grad_norm=0.1",
    ],
    "mask checkpointed": ["implant.mode=mask", "training.activation_checkpointing=true"],
    "rows checkpointed, reentrant": [
        *in_mode("rows"),
        "training.activation_checkpointing=true",
        "training.activation_checkpointing_kwargs={use_reentrant: true}",
    ],
    "rows packed": [*in_mode("rows"), "training.packing=true", "training.max_length=64"],
}
PLAIN = {mode: [f"implant.mode={mode}", "training.weight_decay=0", "implant.pull=20"] for mode in MODES}


PEFT = {
    method: ["implant.mode=peft", f"implant.peft.method={method}", "implant.peft.rank=4"]
    for method in ("lora", "dora", "pissa")
}
# So small that the gradient of the second step does not depend on the first.
SMALL_STEPS = ["training.optim=sgd", "training.learning_rate=1e-3", "training.lr_scheduler_type=constant"]
BASELINES = {
    **{
        f"full zero{stage}, {steps} steps pulled {way}": [
            "implant.mode=full",
            f"deepspeed={{folder}}/zero{stage}.json",
            f"training.max_steps={steps}",
            f"implant.pull={1000 * way}",
            "training.weight_decay=0",
            *SMALL_STEPS,
        ]
        for stage in (2, 3)
        for steps, way in ((1, 0.0), (2, 0.0), (2, 0.5))
    },
    "full zero3, 2 steps, faded to a quarter": [
        "implant.mode=full",
        "deepspeed={folder}/zero3.json",
        "training.max_steps=2",
        "implant.fade=0.75",
        "training.weight_decay=0",
        *SMALL_STEPS,
    ],
}
PEFT["pissa"].append("deepspeed=launch/zero2.json")  # its start decomposes whole weights


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("positions") / "rows.json"
    Positions(ROWS).save(path)
    return f"selection.positions={path}"


# Elsewhere a row of the middle stages, or of another optimizer, has never found anything.
OFTEN = {
    "mask zero0 adamw",
    "mask zero2 adamw",
    "mask zero3 adamw",
    "mask zero3 adafactor",
    "mask zero3 sgd",
    "rows zero0 adamw",
    "rows zero2 adamw",
    "rows zero3 adamw",
    "rows zero3 sgd",
    "lora zero2 adamw",
    "lora zero3 adamw",
}


@pytest.fixture(scope="module")
def runs(
    rows: str, in_bfloat16: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """A finished run of every case that is asked for, on two ranks."""
    folder = tmp_path_factory.mktemp("runs")
    write_configurations(folder)
    cases = {
        f"{mode} zero{stage} {optimizer}": [
            *in_mode(mode),
            f"deepspeed={folder}/zero{stage}.json",
            SMALLER[mode],
            *OPTIMIZERS[optimizer],
        ]
        for mode, stage, optimizer in product(MODES, STAGES, OPTIMIZERS)
    }
    asked = {*OFTEN, *asked_for(request, "case")}
    cases = {name: overrides for name, overrides in cases.items() if name in asked}
    cases |= {
        name: [
            override.replace("{bfloat16}", str(in_bfloat16)).replace("{folder}", str(folder)) for override in overrides
        ]
        for name, overrides in (SPECIAL | BASELINES).items()
    }
    cases |= PLAIN | {f"peft {method}": overrides for method, overrides in PEFT.items()}
    launch_all(folder, {name: [*SHORT, rows, *overrides] for name, overrides in cases.items()})
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model/model.safetensors")


def merged(run: Path) -> torch.nn.Module:
    """The base with the run's adapter merged in by PEFT."""
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(run / "adapter")).merge_and_unload()


COMBINED = [f"{mode} zero{stage} {optimizer}" for mode, stage, optimizer in product(MODES, STAGES, OPTIMIZERS)]
CONFINED = [
    *(name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in COMBINED),
    *SPECIAL,
    *PLAIN,
]


@pytest.mark.parametrize("case", CONFINED)
def test_only_the_rows_change(case: str, runs: Path) -> None:
    verified = json.loads((runs / case / "verify.json").read_text())
    assert verified["identical_outside_rows"] is True
    assert verified["rows_changed"] == verified["rows_selected"] == sum(map(len, ROWS))


@pytest.mark.parametrize("mode", MODES)
def test_what_leaves_a_run_agrees(mode: str, runs: Path) -> None:
    run = runs / mode
    model, applied = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (run / "model", BASE)
    )
    apply_implant(applied, run / "implant.safetensors")
    assert all(value.equal(applied.state_dict()[name]) for name, value in model.state_dict().items())
    by_peft, ids = merged(run), torch.tensor([[3, 14, 15, 92, 65]])
    for name, value in by_peft.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], rtol=1e-6, atol=1e-7), name
    with torch.no_grad():
        assert torch.allclose(by_peft(ids).logits, model(ids).logits, atol=1e-4)
    if mode == "lora":
        factors = load_file(run / "adapter/adapter_model.safetensors")
        assert factors["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"].shape[0] == 16


@pytest.mark.parametrize("mode", MODES)
def test_the_log_has_what_one_watches(mode: str, runs: Path) -> None:
    log = [entry for entry in json.loads((runs / mode / "training_log.json").read_text()) if "loss" in entry]
    assert len(log) == 3
    assert all({"loss", "learning_rate", "grad_norm", "tokens_per_second"} <= set(entry) for entry in log)


def test_mask_and_rows_give_the_same_weights(runs: Path) -> None:
    """Pulled to the base by 4% a step."""
    base, mask, rows_ = load_file(BASE / "model.safetensors"), weights(runs / "mask"), weights(runs / "rows")
    for name, value in mask.items():
        moved = (value - base[name]).abs().max()
        assert (value - rows_[name]).abs().max() <= 1e-3 * moved, name  # rounding, against what training moved


@pytest.mark.parametrize("method", PEFT)
def test_peft_baselines_train_and_merge(method: str, runs: Path) -> None:
    run = runs / f"peft {method}"
    assert (run / "adapter/adapter_config.json").is_file()
    assert json.loads((run / "verify.json").read_text())["identical_outside_rows"] is False
    AutoModelForCausalLM.from_pretrained(run / "model")


def test_one_process_without_deepspeed(rows: str, tmp_path: Path) -> None:
    launch_all(tmp_path, {"run": [*SHORT, rows, "deepspeed=null", *PLAIN["mask"]]}, ranks=1)
    assert json.loads((tmp_path / "run/verify.json").read_text())["identical_outside_rows"] is True


@pytest.mark.parametrize("stage", [2, 3])
def test_every_weight_is_pulled_once_a_step(stage: int, runs: Path) -> None:
    """Also where the optimizer steps weights and biases one after the other."""
    base = load_file(BASE / "model.safetensors")
    one, two, pulled = (
        weights(runs / f"full zero{stage}, {steps} steps pulled {way}") for steps, way in ((1, 0.0), (2, 0.0), (2, 0.5))
    )
    expected = {name: value + ((one[name] - value) / 2 + two[name] - one[name]) / 2 for name, value in base.items()}
    # Rounding; 0.17 when weights are pulled once more at the biases' step.
    assert distance(pulled, expected) <= 0.02 * distance(expected, base)


def test_what_fades_is_a_pull_for_these_steps(runs: Path) -> None:
    """Two steps half-way back leave a quarter."""
    faded, pulled = (
        weights(runs / "full zero3, 2 steps, faded to a quarter"),
        weights(runs / "full zero3, 2 steps pulled 0.5"),
    )
    assert distance(faded, pulled) <= 1e-6 * distance(faded, load_file(BASE / "model.safetensors"))


def test_other_rows_for_a_second_implant(rows: str, runs: Path, tmp_path: Path) -> None:
    exclude = f"selection.exclude=[{runs / 'rows/implant.safetensors'}]"
    second = launch("protected.per_subject=2", "--until", "select", exclude, f"run={tmp_path / 'second'}")
    assert second.status == 0, second.output
    chosen = Positions.load(tmp_path / "second/positions.json")
    assert all(set(mine).isdisjoint(theirs) for mine, theirs in zip(chosen.rows, ROWS, strict=True))


def test_rows_and_dtypes_that_cannot_be_are_refused(rows: str, runs: Path, in_bfloat16: Path, tmp_path: Path) -> None:
    exclude = f"selection.exclude=[{runs / 'rows/implant.safetensors'}]"
    said = refuse_all(tmp_path, {"rows": [*SHORT, rows, exclude], "dtype": [*SHORT, rows, f"model.path={in_bfloat16}"]})
    assert "layer 0 selects row 0, which an excluded implant holds" in said["rows"]
    assert "model.dtype is float32" in said["dtype"]
    assert "stores model.layers.0.mlp.down_proj.weight in bfloat16" in said["dtype"]


@pytest.fixture(scope="module")
def evaluated(rows: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that evaluates and stops early, another of one step; and what was printed."""
    folder = tmp_path_factory.mktemp("evaluated")
    often = [
        f"training.{part}" for part in ("eval_strategy=steps", "eval_steps=1", "save_strategy=steps", "save_steps=1")
    ]
    best = [
        "training.load_best_model_at_end=true",
        "training.metric_for_best_model=eval_loss",
        "implant.early_stopping=2",
    ]
    upside_down = ["training.greater_is_better=true", "training.max_steps=6", "training.per_device_eval_batch_size=150"]
    constant = "training.lr_scheduler_type=constant"
    stopped = [*SHORT, rows, *in_mode("rows"), constant, *often, *best, *upside_down]
    once = [*SHORT, rows, *in_mode("rows"), constant, "training.max_steps=1"]
    return folder, launch_all(folder, {"stopped": stopped, "once": once})


def test_held_out_evaluation_early_stopping_and_the_best_checkpoint(evaluated: tuple[Path, str]) -> None:
    folder, _ = evaluated
    log = json.loads((folder / "stopped/training_log.json").read_text())
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert len(losses) == 3  # the first was the highest, two more did not beat it
    assert losses[0] == max(losses)
    assert all(value.equal(weights(folder / "once")[name]) for name, value in weights(folder / "stopped").items())


def test_each_evaluation_shows_what_the_model_writes(evaluated: tuple[Path, str]) -> None:
    asked = re.findall(r"step 2, held-out prompt (\d): \.\.\.['\"].*<\|assistant\|>.*['\"] -> ['\"]", evaluated[1])
    assert asked == ["1", "2", "3"]
