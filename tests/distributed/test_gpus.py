"""The main job on two GPUs: this machine's, or pretended ones (`tests/pretended`)."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, in_mode
from pretended.build_device import environment_of_gpus

from distributed.conftest import BFLOAT16, launch_all, output_of, start, start_ranks

SHORT = ["selection.strategy=random", "training.max_steps=2"]
KINDS = {
    "rows zero3": [*in_mode("rows"), "deepspeed=launch/zero3.json"],
    "mask zero2 bfloat16": [*in_mode("mask"), "deepspeed=launch/zero2.json", *BFLOAT16],
    "full fade zero3": ["implant.mode=full", "implant.fade=0.5", "deepspeed=launch/zero3.json"],
}


@pytest.fixture(scope="module")
def two_gpus() -> dict[str, str]:
    """The environment of a job on two GPUs."""
    environment = environment_of_gpus(2)
    if isinstance(environment, str):
        pytest.skip(environment)
    return environment


@pytest.fixture(scope="module")
def runs(two_gpus: dict[str, str], in_bfloat16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    cases = {kind: [*SHORT, *(part.format(bfloat16=in_bfloat16) for part in KINDS[kind])] for kind in KINDS}
    launch_all(folder, cases, environment=two_gpus)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_main_job_leaves_a_verified_model(kind: str, runs: Path) -> None:
    verified = json.loads((runs / kind / "verify.json").read_text())
    assert verified["tensors"] > 0
    assert "full" in kind or verified["changed_outside"] == []


def test_an_exception_on_one_rank_ends_all_with_its_message(two_gpus: dict[str, str], tmp_path: Path) -> None:
    """On NCCL leaving the group waits for the others, who wait for this rank in a collective."""
    job = start("tests/reliability/raise_on_rank_one.py", str(tmp_path / "run"), environment=two_gpus)
    output = output_of(job, 120)
    assert job.returncode == 1
    assert "RuntimeError: rank 1 breaks in a training step" in output


def test_a_rank_without_memory_for_a_gather_halves_the_batch(two_gpus: dict[str, str]) -> None:
    """DeepSpeed leaves a failed gather in flight, and the other rank waits in it."""
    job = start("tests/distributed/gather_out_of_memory.py", "0.5", environment=two_gpus)
    output = output_of(job, 120)
    assert job.returncode == 0, output
    differences = re.findall(r"rank (\d): differs by (\S+), (-?\d+) bytes left", output)
    assert {rank for rank, *_ in differences} == {"0", "1"}
    assert all(float(difference) < 1e-6 and int(left) < 2**20 for _, difference, left in differences)
    assert "out of memory at 4 prompts in a batch; going on with 2" in output


def test_a_rank_without_memory_for_one_prompt_is_refused_on_all(two_gpus: dict[str, str]) -> None:
    job = start("tests/distributed/gather_out_of_memory.py", "0.3", environment=two_gpus)
    output = output_of(job, 120)
    assert job.returncode == 2, output
    assert output.count("attribution: a single prompt does not fit the device's memory") == 1


def test_the_engine_lets_go_of_the_devices(two_gpus: dict[str, str], tmp_path: Path) -> None:
    """The evaluation loads a whole model beside whatever is left there."""
    job = start("tests/distributed/held_after_training.py", *SHORT, f"run={tmp_path / 'run'}", environment=two_gpus)
    output = output_of(job, 300)
    assert job.returncode == 0, output
    held = [(int(held), int(peak)) for held, peak in re.findall(r"held (\d+) of (\d+) bytes", output)]
    assert len(held) == 2
    assert all(left < 0.15 * peak for left, peak in held), held


def test_a_layer_costs_few_launches_and_no_wait(two_gpus: dict[str, str]) -> None:
    """Neither in the sweep nor in a step of `mask` does the host wait for the device at a layer."""
    if "FAKE_GPUS" not in two_gpus:
        pytest.skip("pretended GPUs count; real ones need a profiler")
    job = start_ranks([sys.executable, "tests/distributed/count_launches.py"], ROOT, two_gpus)
    output = output_of(job, 120)
    counted = re.findall(r"(\w+): (\S+) launches, (\S+) waits a layer", output)
    costs = {name: (float(launches), float(waits)) for name, launches, waits in counted}
    assert costs.keys() == {"sweep", "mask"}, output
    assert costs["sweep"][0] <= 400
    assert costs["sweep"][1] == 0
    assert costs["mask"][0] <= 170
    assert costs["mask"][1] == 0


def test_devices_may_be_named_by_what_is_no_number(two_gpus: dict[str, str]) -> None:
    """As on parts of a GPU and in some clusters; DeepSpeed's look at the memory reads numbers."""
    if "FAKE_GPUS" not in two_gpus:
        pytest.skip("the names of real ones are their own")
    asks = "from loki_ds.distributed.device import available_memory; print(available_memory())"
    named = {**two_gpus, "CUDA_VISIBLE_DEVICES": "MIG-0f3a5c1e-52d1-5f0b-9f9c-0e1d2c3b4a59"}
    output = output_of(start_ranks([sys.executable, "-c", asks], ROOT, named), 60)
    assert int(output.split()[-1]) > 0, output


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_gpu_script_is_rehearsed(two_gpus: dict[str, str], tmp_path: Path) -> None:
    """Each part at a tiny shape; called again, none is done twice."""
    for path in (ROOT / "build/rehearsal", tmp_path):
        shutil.rmtree(path, ignore_errors=True)
    script = ["bash", "eval/benchmarks/gpu.sh", "rehearse"]
    output = output_of(start_ranks(script, ROOT, two_gpus), 1300)
    figures = dict(re.findall(r"^== ([\w-]+): (\d+ s; .*)$", output, re.MULTILINE))
    parts = "doctor tiny tiny-2 attribution-small steps-small attribution-middle steps-experts steps-half plan"
    assert {*parts.split(), "attribution-large", "steps-large"} <= figures.keys(), output
    again = output_of(start_ranks(script, ROOT, two_gpus), 60)
    assert re.findall(r"^== ([\w-]+): done before", again, re.MULTILINE) == list(figures)


def test_one_gpu_without_deepspeed_writes_its_model(two_gpus: dict[str, str], tmp_path: Path) -> None:
    cases = {mode: [*SHORT, f"implant.mode={mode}", "deepspeed=null"] for mode in ("full", "mask")}
    launch_all(tmp_path, cases, ranks=1, environment=two_gpus)
    for mode in cases:
        assert json.loads((tmp_path / mode / "verify.json").read_text())["tensors"] > 0
