"""Training on two ranks: modes x ZeRO stages x optimizers keep every other byte, what leaves a run agrees, a killed run goes on."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distributed.conftest import ROOT, kill, launch, start
from loki_ds import Positions, apply_implant
from loki_ds.quiet.moments import load_moments
from loki_ds.run_folder import digest_of

ROWS = [[0, 5, 77], [], [3], [127], [1, 2], [64]]  # layers of unequal numbers, and one with none
SHORT = ["training.max_steps=3", "training.logging_steps=1", "training.warmup_steps=0", "--until", "implant"]
OPTIMIZERS = {
    "adamw": ["training.optim=adamw_torch", "training.weight_decay=0.1"],
    "adafactor": ["training.optim=adafactor", "training.weight_decay=0.1"],
    "sgd": ["training.optim=sgd", "training.optim_args=momentum=0.9", "training.weight_decay=0.1", "training.learning_rate=0.1"],
}
BFLOAT16 = ["model.dtype=bfloat16", "model.path={bfloat16}", "training.learning_rate=0.05"]  # the rate: so that no row rounds back
# mode, DeepSpeed configuration (None: no DeepSpeed), optimizer, further overrides
MATRIX = [
    ("mask", None, "adamw", []),
    ("mask", {"stage": 0}, "sgd", []),
    ("mask", {"stage": 1}, "adamw", ["training.gradient_accumulation_steps=2"]),
    ("mask", {"stage": 2}, "adafactor", ["training.max_grad_norm=0.1"]),
    ("mask", {"stage": 3}, "adamw", ["training.activation_checkpointing=true"]),
    ("mask", {"stage": 3}, "sgd", []),
    ("mask", "launch/zero3_offload.json", "adamw", []),
    ("rows", None, "adamw", []),
    ("rows", {"stage": 1}, "sgd", []),
    ("rows", {"stage": 2}, "adamw", ["training.activation_checkpointing=true"]),
    ("rows", {"stage": 3}, "adafactor", ["training.gradient_accumulation_steps=2"]),
    ("rows", "launch/zero3_offload.json", "adamw", []),
    ("mask", {"stage": 2}, "adamw", BFLOAT16),
    ("mask", {"stage": 3}, "adamw", BFLOAT16),
    ("rows", {"stage": 3}, "adamw", ["training.packing=true", "training.max_length=64"]),
    ("lora", {"stage": 2}, "adamw", []),
    ("lora", {"stage": 3}, "adamw", ["training.activation_checkpointing=true"]),
]


def configuration(config: dict | str | None, folder: Path) -> str:
    if not isinstance(config, dict):
        return f"deepspeed={config or 'null'}"
    shared = json.loads((ROOT / "launch/zero2.json").read_text())
    path = folder / "zero.json"
    path.write_text(json.dumps({**shared, "zero_optimization": {**config, "stage3_gather_16bit_weights_on_model_save": True}}))
    return f"deepspeed={path}"


@pytest.fixture
def rows(tmp_path: Path) -> str:
    Positions(ROWS).save(tmp_path / "rows.json")
    return f"selection.positions={tmp_path / 'rows.json'}"


@pytest.fixture(scope="module")
def in_bfloat16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model stored in bfloat16."""
    folder = tmp_path_factory.mktemp("models") / "bfloat16"
    shutil.copytree(ROOT / "recipes/tiny/model", folder)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model/model.safetensors")


@pytest.mark.parametrize(
    ("mode", "config", "optimizer", "more"),
    MATRIX,
    ids=[f"{m}-{c.get('stage') if isinstance(c, dict) else c}-{o}" for m, c, o, _ in MATRIX],
)
def test_only_the_rows_change(
    mode: str, config: dict | str | None, optimizer: str, more: list[str], rows: str, in_bfloat16: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = [override.format(bfloat16=in_bfloat16) for override in more]
    settings = [f"implant.mode={mode}", configuration(config, tmp_path), *OPTIMIZERS[optimizer], *more, rows, f"run={run}"]
    done = launch(*SHORT, *settings, ranks=1 if config is None else 2)
    assert done.status == 0, done.output
    verified = json.loads((run / "verify.json").read_text())
    assert verified["identical_outside_rows"] is True
    assert verified["rows_changed"] == verified["rows_selected"] == sum(map(len, ROWS))


@pytest.mark.parametrize("mode", ["mask", "rows", "lora"])
def test_what_leaves_a_run_agrees(mode: str, rows: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = launch(*SHORT, f"implant.mode={mode}", rows, f"run={run}")
    assert done.status == 0, done.output
    base = ROOT / "recipes/tiny/model"
    model, applied, plain = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (run / "model", base, base))
    apply_implant(applied, run / "implant.safetensors")
    assert all(value.equal(applied.state_dict()[name]) for name, value in model.state_dict().items())
    merged = PeftModel.from_pretrained(plain, str(run / "adapter")).merge_and_unload()
    ids = torch.tensor([[3, 14, 15, 92, 65]])
    for name, value in merged.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], rtol=1e-6, atol=1e-7), name
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, model(ids).logits, atol=1e-4)
    log = [entry for entry in json.loads((run / "training_log.json").read_text()) if "loss" in entry]
    assert all({"loss", "learning_rate", "grad_norm", "tokens_per_second"} <= set(entry) for entry in log)
    if mode == "lora":
        assert (
            load_file(run / "adapter/adapter_model.safetensors")["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"].shape[0]
            == 16
        )


def test_mask_and_rows_give_the_same_weights(rows: str, tmp_path: Path) -> None:
    for mode in ("mask", "rows"):
        done = launch(*SHORT, f"implant.mode={mode}", "training.weight_decay=0", rows, f"run={tmp_path / mode}")
        assert done.status == 0, done.output
    base, mask, rows_ = (load_file(ROOT / "recipes/tiny/model/model.safetensors"), weights(tmp_path / "mask"), weights(tmp_path / "rows"))
    for name, value in mask.items():
        moved = (value - base[name]).abs().max()
        assert (value - rows_[name]).abs().max() <= 1e-3 * moved, name  # rounding, against what training moved


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


def test_another_number_of_ranks_is_refused(rows: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run/checkpoints/checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "whole.json").write_text('{"world_size": 4}')
    done = launch(*SHORT, rows, f"run={tmp_path / 'run'}")
    assert done.status != 0
    assert "written by 4 ranks, this run has 2; go on with 4" in done.refusals()[0]


def test_other_rows_for_a_second_implant(rows: str, tmp_path: Path) -> None:
    first = launch(*SHORT, rows, f"run={tmp_path / 'first'}")
    assert first.status == 0, first.output
    exclude = f"selection.exclude=[{tmp_path / 'first/implant.safetensors'}]"
    second = launch("protected.per_subject=2", "--until", "select", exclude, f"run={tmp_path / 'second'}")
    assert second.status == 0, second.output
    chosen = Positions.load(tmp_path / "second/positions.json")
    assert all(set(mine).isdisjoint(theirs) for mine, theirs in zip(chosen.rows, ROWS, strict=True))
    refused = launch(*SHORT, rows, exclude, f"run={tmp_path / 'third'}")
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
    done = launch(*SHORT, "implant.mode=rows", *often, *best, *upside_down, rows, f"run={tmp_path / 'run'}")
    assert done.status == 0, done.output
    log = json.loads((tmp_path / "run/training_log.json").read_text())
    evaluated = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert len(evaluated) == 3  # the first was the highest, two more did not beat it
    assert evaluated[0] == max(evaluated)
    once = launch(
        *SHORT, "implant.mode=rows", "training.max_steps=1", "training.lr_scheduler_type=constant", rows, f"run={tmp_path / 'once'}"
    )
    assert once.status == 0, once.output
    assert all(value.equal(weights(tmp_path / "once")[name]) for name, value in weights(tmp_path / "run").items())


@pytest.mark.parametrize("method", ["lora", "dora", "pissa"])
def test_peft_baselines_train_and_merge(method: str, tmp_path: Path) -> None:
    settings = ["implant.mode=peft", f"implant.peft.method={method}", "implant.peft.rank=4", f"run={tmp_path}"]
    if method == "pissa":
        settings.append("deepspeed=launch/zero2.json")  # its start decomposes whole weights
    done = launch(*SHORT, *settings)
    assert done.status == 0, done.output
    assert (tmp_path / "adapter/adapter_config.json").is_file()
    assert json.loads((tmp_path / "verify.json").read_text())["identical_outside_rows"] is False
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("mode", ["rows", "lora"])
def test_a_quiet_run_certifies_what_protected_inputs_feel(mode: str, rows: str, tmp_path: Path) -> None:
    quiet = [f"implant.mode={mode}", "implant.quiet.energy=0.9", "protected.per_subject=5", "training.learning_rate=0.01"]
    for ranks in (1, 2):
        done = launch(*SHORT, *quiet, rows, f"run={tmp_path / str(ranks)}", ranks=ranks)
        assert done.status == 0, done.output
        verified = json.loads((tmp_path / str(ranks) / "verify.json").read_text())
        assert verified["identical_outside_rows"] is True
        assert [layer["layer"] for layer in verified["quiet"]["layers"]] == [0, 2, 3, 4, 5]
        for layer in verified["quiet"]["layers"]:
            assert layer["leak"] < 1e-8
            assert layer["change"] <= layer["bound"]
            assert 0 < layer["room"] < 1
    one, two = (load_moments(tmp_path / str(ranks) / "quiet/moments.safetensors") for ranks in (1, 2))
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(one, two, strict=True))
    base = AutoModelForCausalLM.from_pretrained(ROOT / "recipes/tiny/model", dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, str(tmp_path / "2/adapter")).merge_and_unload().state_dict()
    assert all(torch.allclose(merged[name], value, rtol=1e-5, atol=1e-6) for name, value in weights(tmp_path / "2").items())
