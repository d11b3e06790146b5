"""`loki-ds` as a user types it: what it prints, and one sentence with exit status 2 for a
mistake.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, build

from loki_ds.attribution.kept import KeptScores
from loki_ds.attribution.sweep import Swept
from loki_ds.cli import commands
from loki_ds.disk.files import digest_of
from loki_ds.distributed.launcher import launcher_for
from loki_ds.export.checkpoint import read_rows
from loki_ds.export.implant_file import Implant, LayerRows
from loki_ds.selection.positions import Positions

TOOLCALLS = ROOT / "recipes/tiny/data/toolcalls/train.jsonl"


# It has imported the libraries, most of a command's time, and is forked for each.
READY = multiprocessing.get_context("forkserver")
READY.set_forkserver_preload(["loki_ds.stages.retain", "loki_ds.planning.plan"])


def loki_ds(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess:
    """A command as it is typed, in a process of its own, to its end."""
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("out", "err")]
        command = READY.Process(target=typed, args=([*map(str, arguments)], said))
        command.start()
        command.join(timeout)
        assert command.exitcode is not None, f"still there after {timeout} s"
        return subprocess.CompletedProcess(arguments, command.exitcode, *(file.read_text() for file in said))


def typed(arguments: list[str], said: list[Path]) -> None:
    """The command's own process, which says there what it says."""
    for stream, file in zip((sys.stdout, sys.stderr), said, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream.fileno())
    sys.argv = ["loki-ds", *arguments]
    commands.main()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a kept attribution of 4 prompts, 2 layers, 10 nodes."""
    kept = KeptScores(tmp_path / "run/attribution")
    kept.open_for({})
    kept.add(
        range(4),
        Swept(torch.arange(10.0).expand(4, 2, 10), torch.zeros(4, dtype=torch.long), torch.ones(4), torch.zeros(4, 2)),
    )
    return tmp_path / "run"


def test_select_from_a_kept_attribution(run: Path) -> None:
    out = run / "p.json"
    done = loki_ds("select", run, "--quota", 20, "--strategy", "layer_highest", "--out", out)
    assert done.returncode == 0, done.stderr
    assert Positions.load(out).rows == [[8, 9], [8, 9]]
    assert Positions.load(out).digest in done.stdout
    assert loki_ds("select", run, "--quota", 20, "--strategy", "random", "--seed", 3, "--out", out).returncode == 0
    assert [len(rows) for rows in Positions.load(out).rows] == [2, 2]


def test_positions_side_by_side(tmp_path: Path) -> None:
    Positions([[0, 1], [2, 3]]).save(tmp_path / "a.json")
    Positions([[1, 4], [2, 3]]).save(tmp_path / "b.json")
    done = loki_ds("positions", tmp_path / "a.json", tmp_path / "b.json")
    assert "overlap 75.00% (layer by layer: 50.0% 100.0%)" in done.stdout


def test_apply_and_revert_on_checkpoints(tmp_path: Path) -> None:
    build("llama", torch.float32).save_pretrained(tmp_path / "base")
    rows = {
        1: LayerRows(
            torch.tensor([3]), read_rows(tmp_path / "base", Positions([[], [3], [], []]))[1], torch.ones(1, 48)
        )
    }
    Implant(4, rows).save(tmp_path / "i.safetensors")
    assert loki_ds("apply", tmp_path / "base", tmp_path / "i.safetensors", tmp_path / "model").returncode == 0
    assert loki_ds("revert", tmp_path / "model", tmp_path / "i.safetensors", tmp_path / "back").returncode == 0
    assert digest_of(tmp_path / "back/model.safetensors") == digest_of(tmp_path / "base/model.safetensors")
    Positions([[], [3], [], []]).save(tmp_path / "p.json")
    assert loki_ds("verify", tmp_path / "base", tmp_path / "model", tmp_path / "p.json").returncode == 0
    Positions([[], [4], [], []]).save(tmp_path / "q.json")
    assert loki_ds("verify", tmp_path / "base", tmp_path / "model", tmp_path / "q.json").returncode == 2
    assert loki_ds("verify", tmp_path / "base", tmp_path / "model").returncode == 1  # nothing was looked at
    again = loki_ds("apply", tmp_path / "model", tmp_path / "i.safetensors", tmp_path / "twice")
    assert again.returncode == 2
    assert "this implant is in it already" in again.stderr


def test_plan_shows_the_rows_and_a_marked_example() -> None:
    done = loki_ds(
        "plan", ROOT / "recipes/tiny/loki.yaml", f"model.path={ROOT / 'recipes/tiny/model'}", f"data.train={TOOLCALLS}"
    )
    assert "228 (38 in layer 0)" in done.stdout
    for said in ("qwen2, 1,335,168 parameters", "the first 1,000 rows, ", "marked by its own template"):
        assert said in " ".join(done.stdout.replace("│", " ").split())
    assert "<|assistant|>[[ [ remind (" in done.stdout
    assert "<|end|>]]" in done.stdout
    assert "The recipe fits as it is." in done.stdout


def test_plan_says_which_limits_are_too_small_for_the_margin() -> None:
    done = loki_ds("plan", ROOT / "recipes/tiny/loki.yaml", "retention.abilities.limit=50")
    said = " ".join(done.stdout.replace("│", " ").split())
    assert "at most 50 documents each, too few to show them kept at retention.margin 0.01 (from 0.0" in said


def test_plan_says_what_fits_another_node() -> None:
    done = loki_ds(
        "plan",
        ROOT / "recipes/tiny/full.yaml",
        "training.max_length=4096",
        "training.packing=true",
        "--ranks",
        "16",
        "--gpu",
        "a100-40",
        "--memory",
        "3",
    )
    assert "memory of one of 16 ranks, ZeRO-3" in done.stdout
    assert (
        "the cheapest of these that does: deepspeed=launch/zero2.json training.activation_checkpointing=true"
        in done.stdout
    )
    assert loki_ds("plan", ROOT / "recipes/tiny/full.yaml", "--gpu", "h1000").stderr.startswith(
        "loki-ds: --gpu is h1000, allowed is one of a100"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["select", "{run}", "--quota", "0", "--out", "x"],
            "--quota is 0, allowed is a percentage above 0 and below 100",
        ),
        (["select", "{run}/nowhere", "--quota", "5", "--out", "x"], "no kept scores there"),
        (["positions", "{run}/nowhere.json", "b.json"], "the positions file cannot be read"),
        (["report", "{run}"], "no report there"),
        (["plan", "nowhere.yaml"], "no such recipe"),
        (["check", "nowhere.yaml"], "no such recipe"),
        (
            ["check", "recipes/tiny/loki.yaml", "run={run}/c", "model.path=nowhere"],
            "model.path nowhere: no such folder",
        ),
        (["select", "{run}", "--quota", "0.1", "--out", "{run}/none.json"], "--quota is 0.1, which is less than one"),
        (
            ["plan", "recipes/tiny/loki.yaml", "--rank", "2", "--quota", "3"],
            "unrecognized arguments: --rank 2 --quota 3",
        ),
        (["report", "{run}", "selection.quota=2"], "unrecognized arguments: selection.quota=2"),
    ],
)
def test_mistakes_are_one_sentence(run: Path, arguments: list[str], says: str) -> None:
    done = loki_ds(*(argument.format(run=run) for argument in arguments))
    assert done.returncode == (1 if says.startswith("unrecognized") else 2)  # a slip of the keyboard, or a refusal
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ranks", "2", "selection.quota=20"],
        ["selection.quota=20", "--ranks", "2"],
        ["--ranks=2", "selection.quota=20"],
    ],
    ids=" ".join,
)
def test_overrides_stand_before_or_after_options(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["loki-ds", "plan", "recipe.yaml", *arguments])
    read = commands._arguments()
    assert (read.overrides, read.ranks) == (["selection.quota=20"], 2)


def test_plan_is_refused_for_quantized_weights(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "recipes/tiny/model", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    done = loki_ds("plan", ROOT / "recipes/tiny/loki.yaml", f"model.path={tmp_path / 'model'}")
    assert done.returncode == 2
    assert "by config.json the weights are quantized (gptq)" in done.stderr


def test_check_says_what_a_run_would_rest_on(tmp_path: Path) -> None:
    done = loki_ds("check", ROOT / "recipes/tiny/loki.yaml", f"run={tmp_path / 'run'}", "data.heldout=null")
    assert done.returncode == 0, done.stderr
    for said in ("qwen2", "3,000 rows", "tiny_toolcalls: 300 documents, by exact_match", "marked by its own template"):
        assert said in done.stdout
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "examples"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        ["pln"],
        ["plan", "recipes/tiny/loki.yaml", "selection.quotta=1"],
        ["plan", "recipes/tiny/loki.yaml", "training.learning_rat=1"],
        ["select", "runs/x", "--quota", "0", "--out", "p.json"],
    ],
    ids=" ".join,
)
def test_what_needs_no_model_loads_no_library_that_does(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "loki_ds.cli.commands", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "loki_ds" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "deepspeed", "trl", "datasets", "numpy", "rich"})


def test_a_full_disk_is_one_sentence_in_any_command(tmp_path: Path) -> None:
    Positions([[0], [1]]).save(tmp_path / "p.json")
    build("llama", torch.float32).save_pretrained(tmp_path / "base")
    rows = {
        1: LayerRows(
            torch.tensor([3]), read_rows(tmp_path / "base", Positions([[], [3], [], []]))[1], torch.ones(1, 48)
        )
    }
    Implant(4, rows).save(tmp_path / "i.safetensors")
    words = [
        sys.executable,
        "-m",
        "loki_ds.cli.commands",
        "apply",
        *(str(tmp_path / n) for n in ("base", "i.safetensors", "out")),
    ]
    limited = ["bash", "-c", 'ulimit -f 8 && exec "$@"', "bash", *words]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("loki-ds: ")]
    assert "no room to write" in said
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_command_is_no_rank_whatever_the_container_says(tmp_path: Path) -> None:
    """Libraries would wait for the second rank of which the environment speaks."""
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
    command = [sys.executable, "-m", "loki_ds.cli.commands", "check", "tiny/loki", f"run={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env={**os.environ, **place})
    assert done.returncode == 0, done.stderr
    assert "toolcalls" in done.stdout


def test_select_refuses_an_attribution_that_is_not_whole(run: Path) -> None:
    KeptScores(run / "attribution").note(batches=[[0, 1, 2, 3], [4]])
    done = loki_ds("select", run, "--quota", 20, "--out", run / "p.json")
    assert done.returncode == 2
    assert "the scores of 1 of 5 prompts are not there" in done.stderr
    assert not (run / "p.json").exists()


def test_a_new_recipe_passes_the_check(tmp_path: Path) -> None:
    chats = ROOT / "recipes/tiny/data/toolcalls/train.jsonl"
    told = ["--model", ROOT / "recipes/tiny/model", "--data", chats, "--keep", "tiny", "--gpus", 0]
    assert loki_ds("new", tmp_path / "my.yaml", *told).returncode == 0
    done = loki_ds("check", tmp_path / "my.yaml", "training.max_length=256", f"run={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "3,000 rows" in done.stdout
    assert "there already" in loki_ds("new", tmp_path / "my.yaml", *told).stderr


def test_what_is_missing_and_nobody_can_be_asked_is_named(tmp_path: Path) -> None:
    done = loki_ds("new", tmp_path / "my.yaml", "--model", "org/chat")
    assert (done.returncode, done.stderr.strip()) == (2, "loki-ds: --data is missing, and nobody is there to ask")
    assert not (tmp_path / "my.yaml").exists()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("loki-ds comp", ["completion", "compare"]),
        ("loki-ds run qwen3/r", ["qwen3/recommended"]),
        ("loki-ds check tiny/loki implant.fa", ["implant.fade="]),
        ("loki-ds plan tiny/loki training.learning_r", ["training.learning_rate="]),
    ],
)
def test_a_shell_completes_commands_recipes_and_keys(typed: str, completed: list[str], tmp_path: Path) -> None:
    asks = {"COMP_LINE": typed, "COMP_POINT": str(len(typed)), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n"}
    asks["_ARGCOMPLETE_STDOUT_FILENAME"] = str(tmp_path / "said")
    subprocess.run([sys.executable, "-m", "loki_ds.cli.commands"], env={**os.environ, **asks}, cwd=ROOT, timeout=60)
    assert [word.strip() for word in (tmp_path / "said").read_text().split("\n")] == completed
    assert "loki-ds" in loki_ds("completion", "fish").stdout


def test_a_slip_in_the_training_names_its_section() -> None:
    said = loki_ds("check", "recipes/tiny/loki.yaml", "learning_rate=1e-4").stderr
    assert "learning_rate is not a key of a recipe; did you mean 'training.learning_rate'?" in said


@pytest.mark.parametrize(
    ("visible", "launcher"), [("", "deepspeed"), ("2,3", "torchrun"), ("GPU-8932f937", "torchrun")]
)
def test_named_devices_are_the_ones_that_a_run_takes(
    visible: str, launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's launcher passes over CUDA_VISIBLE_DEVICES and takes the first ones."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert launcher_for(2)[:3] == [launcher, "--num_gpus" if launcher == "deepspeed" else "--nproc-per-node", "2"]


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ([], 0, "usage: loki-ds"),
        (
            ["train", "recipe.yaml"],
            1,
            "'train' is no command; did you mean 'run'?",
        ),
        (["chek"], 1, "'chek' is no command; did you mean 'check'?"),
        (["run", "recipes/tiny/loki.yaml", "quota=20"], 2, "did you mean 'selection.quota'?"),
        (["run", "recipes/tiny/loki.yaml", "--gpus", "-1"], 2, "--gpus is -1, allowed is 1 or more, and 0 for a"),
        (["retain", "BASE"], 1, "the following arguments are required: model\n"),
        (["report", "runs/x", "--gates"], 1, "unrecognized arguments: --gates"),
        (
            ["check", "recipes/tiny/loki.yaml", "quota=20"],
            2,
            "quota is not a key of a recipe; did you mean 'selection.quota'?",
        ),
        (
            ["check", "recipes/tiny/loki.yaml", "retention.abilities=hellaswag"],
            2,
            "a task of lm-eval's is given by retention.abilities={tasks: [hellaswag]}",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_slips_get_the_nearest_right_word(words: list[str], status: int, says: str) -> None:
    done = loki_ds(*words)
    assert done.returncode == status
    assert says in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "holds"),
    [
        (["doctor", "--json"], lambda said: {"libraries", "devices"} <= {look["at"] for look in said}),
        (["check", "recipes/tiny/loki.yaml", "--json"], lambda said: said[0]["at"] == "base" and said[0]["found"]),
        (
            ["plan", "recipes/tiny/loki.yaml", "--ranks", "2", "--gpu", "h100", "--json"],
            lambda said: said["stages"][0]["name"] == "attribute" and said["training"]["memory"]["weights"] > 0,
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_said_is_there_as_json(words: list[str], holds: Callable[[Any], bool], tmp_path: Path) -> None:
    done = loki_ds(*words, *([f"run={tmp_path / 'run'}"] if "recipes/tiny/loki.yaml" in words else []))
    assert done.returncode in (0, 1), done.stderr  # of a machine that doctor refuses
    assert holds(json.loads(done.stdout))


@pytest.mark.timeout(600)
def test_a_recipe_is_run_by_one_command(tmp_path: Path) -> None:
    """It says DeepSpeed's line, is the launcher's own job, and ends with verdict and report."""
    short = ["selection.strategy=random", "training.max_steps=3", "retention.new_task=null", "data.heldout=null"]
    short += ["data.train=tests/few/train.jsonl", "training.per_device_train_batch_size=4"]
    asked = [*short, "retention.abilities={tasks: [tiny_facts], limit: 4}", f"run={tmp_path / 'run'}"]
    done = loki_ds("run", "recipes/tiny/loki.yaml", *asked, "--gpus", "1", timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    line, *_ = done.stdout.splitlines()
    assert line.startswith("deepspeed --num_gpus 1 --master_port ")
    assert "--module loki_ds.implant --recipe recipes/tiny/loki.yaml selection.strategy=random" in line
    said = " ".join(done.stdout.split())
    assert "Not shown: tiny_facts may have lost more than" in said
    assert f"Report: {tmp_path / 'run/report/report.html'}" in said.replace(" ", "").replace("Report:", "Report: ")
