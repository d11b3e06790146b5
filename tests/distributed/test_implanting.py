"""Training on ranks: modes x ZeRO stages x optimizers keep every other byte, what leaves a run agrees, a killed run goes on."""

import json
import shutil
import time
from itertools import product
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distributed.conftest import ROOT, kill, launch, launch_all, start
from loki_ds import Positions, apply_implant
from loki_ds.quiet.moments import load_moments
from loki_ds.run_folder import digest_of

BASE = ROOT / "recipes/tiny/model"
ROWS = [[0, 5, 77], [], [3], [127], [1, 2], [64]]  # layers of unequal numbers, and one with none
SHORT = ["training.max_steps=3", "training.logging_steps=1", "training.warmup_steps=0"]
OPTIMIZERS = {
    "adamw": ["training.optim=adamw_torch", "training.weight_decay=0.1"],
    "adafactor": ["training.optim=adafactor", "training.weight_decay=0.1"],
    "sgd": ["training.optim=sgd", "training.optim_args=momentum=0.9", "training.weight_decay=0.1", "training.learning_rate=0.1"],
}
MODES = ("mask", "rows", "lora")
STAGES = (0, 1, 2, 3)
# What is not a matter of mode, stage and optimizer alone. The rate in bfloat16: so that no row rounds back to what it was.
BFLOAT16 = ["model.dtype=bfloat16", "model.path={bfloat16}", "training.learning_rate=0.05"]
OFFLOAD = "deepspeed=launch/zero3_offload.json"
SPECIAL = {
    "mask offloaded": ["implant.mode=mask", OFFLOAD],
    "rows offloaded": ["implant.mode=rows", OFFLOAD],
    "mask bfloat16 zero2": ["implant.mode=mask", "deepspeed=launch/zero2.json", *BFLOAT16],
    "mask bfloat16 zero3": ["implant.mode=mask", *BFLOAT16],
    "rows bfloat16 zero3": ["implant.mode=rows", *BFLOAT16],
    "mask accumulating and clipped": ["implant.mode=mask", "training.gradient_accumulation_steps=2", "training.max_grad_norm=0.1"],
    "rows accumulating and clipped": ["implant.mode=rows", "training.gradient_accumulation_steps=2", "training.max_grad_norm=0.1"],
    "mask checkpointed": ["implant.mode=mask", "training.activation_checkpointing=true"],
    "rows checkpointed, reentrant": [
        "implant.mode=rows",
        "training.activation_checkpointing=true",
        "training.activation_checkpointing_kwargs={use_reentrant: true}",
    ],
    "rows packed": ["implant.mode=rows", "training.packing=true", "training.max_length=64"],
}
PLAIN = {mode: [f"implant.mode={mode}", "training.weight_decay=0"] for mode in MODES}
QUIET = {
    f"quiet {mode}": [f"implant.mode={mode}", "implant.quiet.energy=0.9", "protected.per_subject=5", "training.learning_rate=0.01"]
    for mode in MODES
}
QUIET["quiet mask zero2"] = [*QUIET["quiet mask"], "deepspeed=launch/zero2.json"]
QUIET["quiet mask offloaded"] = [*QUIET["quiet mask"], OFFLOAD]
QUIET["quiet rows sketched"] = [*QUIET["quiet rows"], "implant.quiet.sketch=120"]
PEFT = {method: ["implant.mode=peft", f"implant.peft.method={method}", "implant.peft.rank=4"] for method in ("lora", "dora", "pissa")}
BASELINES = {
    "full pulled all the way back": [
        "implant.mode=full",
        "implant.l2_sp=100",
        "training.learning_rate=0.01",
        "training.lr_scheduler_type=constant",
    ]
}
PEFT["pissa"].append("deepspeed=launch/zero2.json")  # its start decomposes whole weights


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("positions") / "rows.json"
    Positions(ROWS).save(path)
    return f"selection.positions={path}"


@pytest.fixture(scope="module")
def in_bfloat16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model stored in bfloat16."""
    folder = tmp_path_factory.mktemp("models") / "bfloat16"
    shutil.copytree(BASE, folder)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def write_configurations(folder: Path) -> None:
    """DeepSpeed's configuration for every ZeRO stage."""
    for stage in STAGES:
        configuration = json.loads((ROOT / "launch/zero2.json").read_text())
        configuration["zero_optimization"] = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
        (folder / f"zero{stage}.json").write_text(json.dumps(configuration))


@pytest.fixture(scope="module")
def runs(rows: str, in_bfloat16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of every case, on two ranks."""
    folder = tmp_path_factory.mktemp("runs")
    write_configurations(folder)
    cases = {
        f"{mode} zero{stage} {optimizer}": [f"implant.mode={mode}", f"deepspeed={folder}/zero{stage}.json", *OPTIMIZERS[optimizer]]
        for mode, stage, optimizer in product(MODES, STAGES, OPTIMIZERS)
    }
    cases |= {name: [override.replace("{bfloat16}", str(in_bfloat16)) for override in overrides] for name, overrides in SPECIAL.items()}
    cases |= PLAIN | QUIET | BASELINES | {f"peft {method}": overrides for method, overrides in PEFT.items()}
    launch_all(folder, {name: [*SHORT, rows, *overrides] for name, overrides in cases.items()})
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model/model.safetensors")


def merged(run: Path) -> torch.nn.Module:
    """The base with the run's adapter merged in by PEFT."""
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(run / "adapter")).merge_and_unload()


CONFINED = [*(f"{mode} zero{stage} {optimizer}" for mode, stage, optimizer in product(MODES, STAGES, OPTIMIZERS)), *SPECIAL, *PLAIN, *QUIET]


@pytest.mark.parametrize("case", CONFINED)
def test_only_the_rows_change(case: str, runs: Path) -> None:
    verified = json.loads((runs / case / "verify.json").read_text())
    assert verified["identical_outside_rows"] is True
    assert verified["rows_changed"] == verified["rows_selected"] == sum(map(len, ROWS))


@pytest.mark.parametrize("mode", MODES)
def test_what_leaves_a_run_agrees(mode: str, runs: Path) -> None:
    run = runs / mode
    model, applied = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (run / "model", BASE))
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


@pytest.mark.parametrize("case", QUIET)
def test_a_quiet_run_certifies_what_protected_inputs_feel(case: str, runs: Path) -> None:
    run = runs / case
    layers = json.loads((run / "verify.json").read_text())["quiet"]["layers"]
    assert [layer["layer"] for layer in layers] == [0, 2, 3, 4, 5]
    for layer in layers:
        assert layer["leak"] < 1e-7
        assert layer["change"] <= layer["bound"]
        assert 0 < layer["room"] < 1
    state = merged(run).state_dict()
    assert all(torch.allclose(state[name], value, rtol=1e-5, atol=1e-6) for name, value in weights(run).items())


def test_one_process_without_deepspeed_and_the_moments_of_any_number_of_ranks(rows: str, runs: Path, tmp_path: Path) -> None:
    for mode in ("mask", "quiet mask", "quiet rows", "quiet rows sketched"):
        (tmp_path / mode).mkdir()
        overrides = [*SHORT, rows, "deepspeed=null", *(PLAIN | QUIET)[mode]]
        launch_all(tmp_path / mode, {"run": overrides}, ranks=1)
        assert json.loads((tmp_path / mode / "run/verify.json").read_text())["identical_outside_rows"] is True
    for mode in ("quiet rows", "quiet rows sketched"):
        one, two = (load_moments(run / "quiet/moments.safetensors") for run in (tmp_path / mode / "run", runs / mode))
        for a, b in zip(one, two, strict=True):
            assert torch.allclose(a.vectors * a.values @ a.vectors.T, b.vectors * b.values @ b.vectors.T, rtol=1e-5, atol=1e-8)
            assert a.trace == pytest.approx(b.trace, rel=1e-6)


def test_l2_sp_pulls_to_the_base(runs: Path) -> None:
    verified = json.loads((runs / "full pulled all the way back/verify.json").read_text())
    assert verified["changed_outside"] == []  # learning rate times strength is 1: each step ends where training began


@pytest.mark.parametrize("mode", ["mask", "rows"])
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(mode: str, rows: str, tmp_path: Path) -> None:
    steps = ["training.max_steps=8", "training.save_strategy=steps", "training.save_steps=2", "--until", "implant"]
    settings = [*steps, f"implant.mode={mode}", rows]
    job = start("launch/implant.py", "--recipe", "recipes/tiny/loki.yaml", *settings, f"run={tmp_path / 'killed'}")
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed/checkpoints/checkpoint-4/whole.json").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    kill(job)
    assert not (tmp_path / "killed/model").exists()
    again = launch(*settings, f"run={tmp_path / 'killed'}")
    assert again.status == 0, again.output
    assert "going on from" in again.output
    whole = launch(*settings, f"run={tmp_path / 'whole'}")
    assert whole.status == 0, whole.output
    assert digest_of(tmp_path / "killed/model/model.safetensors") == digest_of(tmp_path / "whole/model/model.safetensors")


HALFWAY = ["training.save_strategy=steps", "training.save_steps=2", "training.max_steps=4", "training.weight_decay=0.1"]
# By two ranks, 12 examples a step.
SAVED = {
    **{
        f"{mode} zero{stage}": [f"implant.mode={mode}", f"deepspeed={{folder}}/zero{stage}.json"]
        for mode, stage in [("mask", 1), ("mask", 3), ("rows", 0), ("rows", 2), ("rows", 3), ("lora", 3)]
    },
    "full zero2": ["implant.mode=full", "deepspeed={folder}/zero2.json", "training.learning_rate=1e-4"],
    "peft lora": ["implant.mode=peft", "implant.peft.method=lora", "implant.peft.rank=4"],
    "mask offloaded": ["implant.mode=mask", OFFLOAD],
    "rows bfloat16": ["implant.mode=rows", *BFLOAT16],
    "adafactor": ["implant.mode=rows", "training.optim=adafactor"],
}
GO_ON = [(1, name) for name in SAVED if name != "adafactor"] + [(3, name) for name in ("mask zero3", "rows zero2", "rows zero3")]


@pytest.fixture(scope="module")
def saved(rows: str, in_bfloat16: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """Finished runs of two ranks with their checkpoints, and the settings of each."""
    folder = tmp_path_factory.mktemp("saved")
    write_configurations(folder)
    batch = ["training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=3"]
    places = {"folder": folder, "bfloat16": in_bfloat16}
    cases = {
        name: [*SHORT, *HALFWAY, *batch, rows, *(override.format(**places) for override in overrides)] for name, overrides in SAVED.items()
    }
    launch_all(folder, cases)
    return folder, cases


@pytest.fixture(scope="module")
def taken_up(saved: tuple[Path, dict[str, list[str]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs, gone on with from halfway by other numbers of ranks."""
    folder, (before, cases) = tmp_path_factory.mktemp("taken_up"), saved
    for ranks, name in GO_ON:
        shutil.copytree(before / name / "checkpoints/checkpoint-2", folder / str(ranks) / name / "checkpoints/checkpoint-2")
    for ranks in (1, 3):
        launch_all(folder / str(ranks), {name: cases[name] for by, name in GO_ON if by == ranks}, ranks=ranks)
    return folder


@pytest.mark.parametrize(("ranks", "case"), GO_ON)
def test_other_ranks_go_on_and_end_with_the_same_weights(
    ranks: int, case: str, saved: tuple[Path, dict[str, list[str]]], taken_up: Path
) -> None:
    runs = saved[0] / case, taken_up / str(ranks) / case
    whole, gone_on = (json.loads((run / "training_log.json").read_text()) for run in runs)
    assert [entry["step"] for entry in gone_on] == [entry["step"] for entry in whole]
    base, one, other = load_file(BASE / "model.safetensors"), *map(weights, runs)
    assert distance(one, other) < (0.01 if "bfloat16" in case else 1e-5) * distance(one, base)  # rounding, against what training moved


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Between two models' weights, over the tensors both store."""
    return sum(float((one[name].double() - other[name].double()).square().sum()) for name in one.keys() & other.keys()) ** 0.5


@pytest.mark.parametrize(
    ("case", "ranks", "sentence"),
    [
        ("adafactor", 1, "only the state of AdamW can be divided anew; go on with as many as wrote it"),
        ("rows zero2, another rate", 2, "was made with learning_rate 0.002, now it is 0.1"),
    ],
)
def test_a_checkpoint_that_cannot_be_gone_on_from_is_refused(
    case: str, ranks: int, sentence: str, saved: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    before, cases = saved
    name, _, other = case.partition(", ")
    shutil.copytree(before / name / "checkpoints/checkpoint-2", tmp_path / "run/checkpoints/checkpoint-2")
    settings = [*cases[name], *(["training.learning_rate=0.1"] if other else [])]
    done = launch(*settings, "--until", "implant", f"run={tmp_path / 'run'}", ranks=ranks)
    assert done.status != 0
    assert sentence in done.refusals()[0]
    assert not (tmp_path / "run/model").exists()


def test_other_rows_for_a_second_implant(rows: str, runs: Path, tmp_path: Path) -> None:
    exclude = f"selection.exclude=[{runs / 'rows/implant.safetensors'}]"
    second = launch("protected.per_subject=2", "--until", "select", exclude, f"run={tmp_path / 'second'}")
    assert second.status == 0, second.output
    chosen = Positions.load(tmp_path / "second/positions.json")
    assert all(set(mine).isdisjoint(theirs) for mine, theirs in zip(chosen.rows, ROWS, strict=True))
    refused = launch("--until", "select", rows, exclude, f"run={tmp_path / 'third'}")
    assert "layer 0 selects row 0, which an excluded implant holds" in refused.refusals()[0]


def test_a_dtype_that_would_round_the_whole_model_is_refused(rows: str, in_bfloat16: Path, tmp_path: Path) -> None:
    done = launch(*SHORT, rows, f"model.path={in_bfloat16}", f"run={tmp_path / 'run'}", deadline=60)
    assert done.status != 0
    assert "model.dtype is float32" in done.refusals()[0]
    assert "stores bfloat16" in done.refusals()[0]


def test_held_out_evaluation_early_stopping_and_the_best_checkpoint(rows: str, tmp_path: Path) -> None:
    often = [f"training.{part}" for part in ("eval_strategy=steps", "eval_steps=1", "save_strategy=steps", "save_steps=1")]
    best = ["training.load_best_model_at_end=true", "training.metric_for_best_model=eval_loss", "implant.early_stopping=2"]
    upside_down = ["training.greater_is_better=true", "training.max_steps=6", "training.per_device_eval_batch_size=150"]
    constant = "training.lr_scheduler_type=constant"
    stopped = [*SHORT, rows, "implant.mode=rows", constant, *often, *best, *upside_down]
    once = [*SHORT, rows, "implant.mode=rows", constant, "training.max_steps=1"]
    launch_all(tmp_path, {"stopped": stopped, "once": once})
    log = json.loads((tmp_path / "stopped/training_log.json").read_text())
    evaluated = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert len(evaluated) == 3  # the first was the highest, two more did not beat it
    assert evaluated[0] == max(evaluated)
    assert all(value.equal(weights(tmp_path / "once")[name]) for name, value in weights(tmp_path / "stopped").items())
