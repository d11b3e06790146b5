"""Starting the real launcher on CPU ranks, or with ON_GPUS on GPUs (`tests/pretended`)."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from pretended.build_device import environment_of_gpus
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig

from loki_ds.distributed.launcher import free_port

STAGES = (0, 1, 2, 3)  # of ZeRO
FEW = ROOT / "tests/few/loki.yaml"
# The same of another tiny recipe.
FEW_ROWS = [
    *("data.train=tests/few/train.jsonl", "data.heldout=tests/few/heldout.jsonl"),
    "training.per_device_train_batch_size=4",
]


# With the folder of `in_bfloat16`. The rate: so that no row rounds back to what it was.
BFLOAT16 = ["model.dtype=bfloat16", "model.path={bfloat16}", "training.learning_rate=0.05"]


@pytest.fixture(scope="session")
def in_bfloat16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model stored in bfloat16."""
    folder = tmp_path_factory.mktemp("models") / "bfloat16"
    shutil.copytree(ROOT / "recipes/tiny/model", folder)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def asked_for(request: pytest.FixtureRequest, *names: str) -> list[Any]:
    """The values of these parameters in the tests of the module that will run, without those that
    are left out (`-m`, `-k`).
    """
    own = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    values = [item.callspec.params for item in own if set(names) <= item.callspec.params.keys()]
    return [params[names[0]] if len(names) == 1 else tuple(params[name] for name in names) for params in values]


def write_configurations(folder: Path) -> None:
    """DeepSpeed's configuration for every ZeRO stage."""
    for stage in STAGES:
        configuration = json.loads((ROOT / "launch/zero2.json").read_text())
        configuration["zero_optimization"] = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
        (folder / f"zero{stage}.json").write_text(json.dumps(configuration))


@dataclass
class Launched:
    """How a launched job ended."""

    status: int
    output: str
    seconds: float

    def refusals(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("loki-ds: ")]


def launch(
    *arguments: str,
    recipe: Path = FEW,
    ranks: int = 2,
    deadline: float = 240,
    environment: dict[str, str] | None = None,
    file_size_kib: int | None = None,
    flags: list[str] | None = None,
) -> Launched:
    """`deepspeed launch/implant.py` on CPU ranks, from the project's root, to its end.

    file_size_kib: no process may write a file larger than that; flags: the launcher's, instead of
    the number of ranks.
    """
    started = time.monotonic()
    script = ["launch/implant.py", "--recipe", str(recipe), *arguments]
    job = start(*script, ranks=ranks, environment=environment, file_size_kib=file_size_kib, flags=flags)
    output = output_of(job, deadline)
    return Launched(job.returncode, output, time.monotonic() - started)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small mixture of experts that speaks the tiny world's tokens."""
    folder, tokenizer = tmp_path_factory.mktemp("experts"), AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    routed = {"moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2, "head_dim": 8}
    config = Qwen3MoeConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes, **routed)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Between two models' weights, over the tensors both store."""
    return (
        sum(float((one[name].double() - other[name].double()).square().sum()) for name in one.keys() & other.keys())
        ** 0.5
    )


def launch_all(
    folder: Path,
    cases: dict[str, list[str]],
    recipes: dict[str, Path] | None = None,
    ranks: int = 2,
    environment: dict[str, str] | None = None,
    refused: bool = False,
) -> str:
    """The main job until implant for each named list of overrides, in one start; the run of each is
    `folder/name`. Returns what was printed.

    recipes: by the same names; the tiny LoKI recipe on few rows where there is none. refused:
    whether each of them has to be.
    """
    listed = [
        {
            "recipe": str((recipes or {}).get(name, FEW)),
            "overrides": [*overrides, f"run={folder / name}"],
            "refused": refused,
        }
        for name, overrides in cases.items()
    ]
    (folder / "cases.json").write_text(json.dumps(listed))
    job = start("tests/distributed/main_jobs.py", str(folder / "cases.json"), ranks=ranks, environment=environment)
    output = output_of(job, 550)
    assert job.returncode == 0, output
    return output


def refuse_all(
    folder: Path, cases: dict[str, list[str]], recipes: dict[str, Path] | None = None, ranks: int = 2
) -> dict[str, str]:
    """The sentence by which each of the main jobs is refused, the same on every rank, all in one
    start.
    """
    output = launch_all(folder, cases, recipes, ranks, refused=True)
    assert "Traceback" not in output
    of_first, *of_others = (json.loads((folder / f"refused-{rank}.json").read_text()) for rank in range(ranks))
    assert all(of_rank == of_first for of_rank in of_others)
    sentences = {name: of_first[f"run={folder / name}"] for name in cases}
    assert all(sentences.values()), output
    return sentences


def start(
    *script: str,
    ranks: int = 2,
    environment: dict[str, str] | None = None,
    file_size_kib: int | None = None,
    flags: list[str] | None = None,
) -> subprocess.Popen:
    """A script through DeepSpeed's launcher, from the project's root."""
    launcher = [
        str(Path(sys.executable).parent / "deepspeed"),
        *(flags or ["--num_gpus", str(ranks)]),
        "--master_port",
        str(free_port()),
    ]
    limited = [] if file_size_kib is None else ["bash", "-c", f'ulimit -f {file_size_kib} && exec "$@"', "bash"]
    return start_ranks([*limited, *launcher, *script], ROOT, environment or {}, ranks)


def start_ranks(command: list[str], folder: Path, environment: dict[str, str], ranks: int = 2) -> subprocess.Popen:
    """A command that starts ranks, in a process group of its own."""
    whole_environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **environment_of_ranks(ranks),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        **environment,
    }
    return subprocess.Popen(
        command,
        cwd=folder,
        env=whole_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


# What holds on processors alone, whatever the ranks run on.
not_on_gpus = pytest.mark.skipif(
    "ON_GPUS" in os.environ, reason="builds for processors, or nodes that would share a GPU"
)


def environment_of_ranks(count: int) -> dict[str, str]:
    """On processors, or on GPUs where ON_GPUS is set: the whole suite is then their rehearsal."""
    if "ON_GPUS" not in os.environ:
        return {"DS_ACCELERATOR": "cpu"}
    environment = environment_of_gpus(count)
    if isinstance(environment, str):
        pytest.skip(environment)
    return environment


def output_of(job: subprocess.Popen, deadline: float) -> str:
    """What a job prints to its end; nothing of it is left, whatever the end."""
    try:
        return job.communicate(timeout=deadline)[0]
    finally:
        kill(job)


def kill(job: subprocess.Popen) -> None:
    """End the launcher and every rank at once, if they still run."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()
