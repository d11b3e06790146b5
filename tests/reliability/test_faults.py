"""Faults through the real launcher: all ranks end soon, non-zero, with the cause; the same command
then ends as if nothing had been.

Each fault strikes when a file says that its stage is under way. What comes out is compared with an
unbroken run, byte for byte.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, in_mode
from distributed.conftest import asked_for, kill, launch, launch_all, output_of, start

from loki_ds.disk.files import digest_of

SETTINGS = [
    "protected.per_subject=12",
    "attribution.batch_size=2",
    "training.max_steps=8",
    "training.save_strategy=steps",
    "training.save_steps=2",
]
UNTIL = ["--until", "implant"]
TINY = "tests/few/loki.yaml"
ENDED = "exits with return code = "  # the killed rank's -9, or that of a rank that noticed first
SOON = 30.0  # seconds for all ranks to end after a fault


Ranks = dict[int, psutil.Process]


@dataclass
class Fault:
    """When it strikes (a file that appears), what it does to the job, and what the output must
    name.
    """

    when: str
    strike: Callable[[subprocess.Popen, Ranks], None]
    names: str


def ranks_of(job: subprocess.Popen) -> Ranks:
    found: Ranks = {}
    for process in psutil.Process(job.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "implant.py" in " ".join(process.cmdline()) and "RANK" in process.environ():
                found[int(process.environ()["RANK"])] = process
    return found


def kill_rank(rank: int) -> Callable[[subprocess.Popen, Ranks], None]:
    return lambda _, ranks: ranks[rank].send_signal(signal.SIGKILL)


def terminate_launcher(job: subprocess.Popen, _: Ranks) -> None:
    job.send_signal(signal.SIGTERM)


def kill_all(job: subprocess.Popen, _: Ranks) -> None:
    os.killpg(job.pid, signal.SIGKILL)


# Where rank 0 kills itself (killed_at.py) while what the run exports is being written.
WRITING = {
    "the model's files": ("open", ".model.unfinished/tokenizer.json"),
    "the model's name": ("os.rename", ".model.unfinished"),
    "the proof": ("os.rename", ".verify.json.unfinished"),
    "the implant file": ("os.rename", ".implant.safetensors.unfinished"),
    "the adapter": ("os.rename", ".adapter.unfinished"),
}

FAULTS = {
    "one rank killed during attribution": Fault("attribution/scores-*.safetensors", kill_rank(1), ENDED),
    "all killed between stages": Fault("positions.json", kill_all, ""),
    "terminated during a training step": Fault(
        "checkpoints/checkpoint-4/whole.json", terminate_launcher, "the launcher is gone, this rank ends"
    ),
    "one rank killed while a checkpoint is written": Fault("checkpoints/checkpoint-4", kill_rank(0), ENDED),
    "one rank killed before the export": Fault("training_log.json", kill_rank(0), ENDED),
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    done = launch(*SETTINGS, *UNTIL, f"run={run}")
    assert done.status == 0, done.output
    return run


def outcome(run: Path) -> dict[str, object]:
    verified = json.loads((run / "verify.json").read_text())
    return {
        name: digest_of(run / name) for name in ("positions.json", "model/model.safetensors", "implant.safetensors")
    } | verified


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, dict[str, str]]:
    """Every fault has struck a run of its own, `folder/name`, and then one start has gone on with
    all of them: the folder, and what the broken ones said.
    """
    folder, said = tmp_path_factory.mktemp("broken"), {}
    asked = asked_for(request, "name")
    for name, fault in FAULTS.items():
        if name not in asked:
            continue
        job = start("launch/implant.py", "--recipe", TINY, *SETTINGS, *UNTIL, f"run={folder / name}")
        said[name] = strike(job, fault, folder / name)
        assert job.returncode != 0
    for name, place in WRITING.items():
        if name not in asked:
            continue
        script = ["tests/reliability/killed_at.py", *place, "--recipe", TINY, *SETTINGS, *UNTIL]
        said[name] = ended(start(*script, f"run={folder / name}"))
        halves = [file for file in (folder / name).glob("*.json") if not json.loads(file.read_text())]
        assert halves == []
    assert not any((folder / name / "verify.json").exists() for name in FAULTS)
    launch_all(folder, dict.fromkeys(said, SETTINGS))
    return folder, said


OFTEN = (  # the others are the same property under other names
    "one rank killed during attribution",
    "one rank killed while a checkpoint is written",
    "the model's files",
)


@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in (*FAULTS, *WRITING)]
)
def test_a_fault_ends_the_job_and_the_same_settings_make_good(
    name: str, unbroken: Path, outputs: tuple[Path, dict[str, str]]
) -> None:
    folder, said = outputs
    if name in FAULTS:
        assert FAULTS[name].names in said[name]
    else:
        assert "rank 0 kills itself" in said[name]
        assert ENDED in said[name]
    assert outcome(folder / name) == outcome(unbroken)
    assert list((folder / name).rglob(".*.unfinished")) == []


@pytest.mark.slow
def test_killed_while_it_evaluates_the_report_is_the_same(tmp_path: Path) -> None:
    settings = ["selection.strategy=random", "training.max_steps=4", "retention.new_task.limit=10"]
    settings.append("retention.abilities={tasks: [tiny_facts, tiny_copying], limit: 20}")
    done = launch(*settings, f"run={tmp_path / 'whole/run'}")
    assert done.status == 0, done.output
    run = tmp_path / "broken/run"
    job = start("launch/implant.py", "--recipe", TINY, *settings, f"run={run}")
    share_of_the_base = "retention/answers/.*/share?of2.json"
    strike(job, Fault(share_of_the_base, kill_rank(0), ENDED), run)
    assert not (run / "report").exists()
    again = launch(*settings, f"run={run}")
    assert again.status == 0, again.output
    same = [report_without_its_circumstances(folder) for folder in (tmp_path / "whole/run", run)]
    assert same[0] == same[1]


def report_without_its_circumstances(run: Path) -> dict[str, object]:
    report = json.loads((run / "report/report.json").read_text())
    return {key: value for key, value in report.items() if key not in ("run", "costs")} | {
        "origin": report["origin"] | {"again": ""}
    }


def ended(job: subprocess.Popen, within: float = 90) -> str:
    """The output of a job that is to end by itself, and not well."""
    output = output_of(job, within)
    assert job.returncode != 0, output
    return output


def strike(job: subprocess.Popen, fault: Fault, run: Path) -> str:
    """Wait for the fault's moment, strike, and see every rank end in time; returns the job's
    output.
    """
    try:
        deadline = time.monotonic() + 120
        ranks: Ranks = {}
        while len(ranks) < 2 or not list(run.glob(fault.when)):
            assert job.poll() is None, job.communicate()[0]
            assert time.monotonic() < deadline
            ranks = ranks if len(ranks) == 2 else ranks_of(job)
            time.sleep(0.002)
        fault.strike(job, ranks)
        struck = time.monotonic()
        output, _ = job.communicate(timeout=SOON)
        _, alive = psutil.wait_procs(list(ranks.values()), timeout=max(0.0, struck + SOON - time.monotonic()))
        assert alive == []
        return output
    finally:
        kill(job)


# What the disk, or the quota, refuses: a limit of the size of any file, in KiB, and what cannot be
# written under it.
FULL = {"scores do not fit": (10, "scores-"), "the model does not fit": (4000, "model")}


@pytest.mark.parametrize("name", [pytest.param("scores do not fit", marks=pytest.mark.slow), "the model does not fit"])
def test_no_room_is_said_and_making_room_is_enough(name: str, unbroken: Path, tmp_path: Path) -> None:
    kib, _ = FULL[name]
    settings = [
        *in_mode("rows"),
        "protected.per_subject=12",
        "attribution.batch_size=30",
        "training.max_steps=2",
        "--until",
        "implant",
    ]
    done = launch(*settings, f"run={tmp_path / 'run'}", file_size_kib=kib)
    assert done.status != 0
    assert len(done.refusals()) == 1, done.output
    assert "no room to write" in done.refusals()[0]
    assert "Traceback" not in done.output
    assert not (tmp_path / "run/model").exists()
    again = launch(*settings, f"run={tmp_path / 'run'}")
    assert again.status == 0, again.output
    assert json.loads((tmp_path / "run/verify.json").read_text())["identical_outside_rows"] is True


@pytest.mark.slow  # on pretended GPUs it is looked at each time
def test_a_rank_that_raises_ends_the_others(tmp_path: Path) -> None:
    output = ended(start("tests/reliability/raise_on_rank_one.py", str(tmp_path / "run")), within=80)
    assert "RuntimeError: rank 1 breaks in a training step" in output
    assert not (tmp_path / "run/model").exists()


def test_numbers_that_go_wrong_stop_the_run_with_step_and_layer(tmp_path: Path) -> None:
    wild = [
        "training.optim=sgd",
        "training.learning_rate=3e38",
        "training.max_grad_norm=0",
        "training.warmup_steps=0",
        "training.lr_scheduler_type=constant",
    ]
    saved = [
        "selection.strategy=random",
        "training.max_steps=5",
        "training.save_strategy=steps",
        "training.save_steps=1",
    ]
    done = launch(*wild, *saved, *in_mode("rows"), "--until", "implant", f"run={tmp_path / 'run'}")
    assert done.status != 0
    assert len(done.refusals()) == 1, done.output
    assert re.search(r"the loss is NaN or infinite at step \d, first in the output of layer \d", done.refusals()[0])
    assert (tmp_path / "run/checkpoints/checkpoint-1/whole.json").exists()
    assert not (tmp_path / "run/model").exists()


def in_half_precision(tmp_path: Path, scale_power: int, steps: int) -> subprocess.Popen:
    """A float16 run whose loss scale starts at a power of two that is far too high: the first steps
    overflow.
    """
    zero = json.loads((ROOT / "launch/zero2.json").read_text())
    zero["fp16"] |= {"initial_scale_power": scale_power}
    (tmp_path / "zero.json").write_text(json.dumps(zero))
    settings = [
        "selection.strategy=random",
        "model.dtype=float16",
        *in_mode("rows"),
        f"training.max_steps={steps}",
        "training.logging_steps=1",
    ]
    return start(
        "tests/reliability/in_half_precision.py",
        *settings,
        f"deepspeed={tmp_path / 'zero.json'}",
        f"run={tmp_path / 'run'}",
    )


@pytest.mark.slow
def test_overflow_in_half_precision_skips_steps_and_no_more(tmp_path: Path) -> None:
    job = in_half_precision(tmp_path, 24, 20)
    output = output_of(job, 120)
    assert job.returncode == 0, output
    log = [entry for entry in json.loads((tmp_path / "run/training_log.json").read_text()) if "grad_norm" in entry]
    overflown = [entry["step"] for entry in log if entry["grad_norm"] == float("inf")]
    assert overflown == list(range(1, len(overflown) + 1))
    assert 2 <= len(overflown) < 18
    assert log[-1]["loss"] < log[0]["loss"]
    assert json.loads((tmp_path / "run/verify.json").read_text())["identical_outside_rows"] is True


@pytest.mark.slow
def test_a_run_whose_every_step_overflows_is_no_success(tmp_path: Path) -> None:
    output = ended(in_half_precision(tmp_path, 60, 3))
    assert "training changed none of the 228 selected rows" in output
    assert "Traceback" not in output
    assert (tmp_path / "run/model/NOT_VERIFIED").exists()


@pytest.mark.slow
def test_a_run_that_is_pulled_all_the_way_back_is_no_success(tmp_path: Path) -> None:
    """The learning rate times the strength is 1: each step ends where training began."""
    pulled = ["implant.pull=100", "training.learning_rate=0.01", "training.lr_scheduler_type=constant"]
    done = launch("implant.mode=full", *pulled, "training.max_steps=2", *UNTIL, f"run={tmp_path / 'run'}")
    assert done.status != 0
    assert len(done.refusals()) == 1, done.output
    assert "training changed none of the " in done.refusals()[0]
    assert json.loads((tmp_path / "run/verify.json").read_text())["changed_outside"] == []
    assert (tmp_path / "run/model/NOT_VERIFIED").exists()


def test_nothing_is_left_behind(unbroken: Path) -> None:
    """No process of ours, no shared buffer of DeepSpeed's."""
    before = set(Path("/dev/shm").glob("deepspeed_allreduce_buffer_*"))
    done = launch(*SETTINGS, *UNTIL, f"run={unbroken}")
    assert done.status == 0
    assert set(Path("/dev/shm").glob("deepspeed_allreduce_buffer_*")) <= before
    ours = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(unbroken) in " ".join(process.info["cmdline"] or [])
    ]
    assert ours == []


@pytest.mark.slow
def test_locale_clock_and_few_examples_change_nothing(unbroken: Path, tmp_path: Path) -> None:
    """Another locale and time zone; and a run finished long ago, by the clock of its files, is
    still finished.
    """
    odd = {"LC_ALL": "C", "LANG": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati", "HF_TOKEN": "hf_a_secret"}
    done = launch(*SETTINGS, *UNTIL, f"run={tmp_path / 'odd'}", environment=odd)
    assert done.status == 0, done.output
    assert outcome(tmp_path / "odd") == outcome(unbroken)
    assert [
        file for file in (tmp_path / "odd").rglob("*") if file.is_file() and b"hf_a_secret" in file.read_bytes()
    ] == []
    for file in (tmp_path / "odd").rglob("*"):
        os.utime(file, (0, 2_000_000_000))
    again = launch(*SETTINGS, *UNTIL, f"run={tmp_path / 'odd'}")
    assert again.output.count("already there") == 3
    few = tmp_path / "few.jsonl"
    few.write_text(
        "".join((ROOT / "recipes/tiny/data/toolcalls/train.jsonl").read_text().splitlines(keepends=True)[:3])
    )  # fewer than a batch a rank
    done = launch(
        "selection.strategy=random",
        f"data.train={few}",
        "training.max_steps=3",
        "--until",
        "implant",
        f"run={tmp_path / 'few'}",
    )
    assert done.status == 0, done.output
