"""Bad input on two ranks: one sentence, once, a non-zero exit, promptly, and nothing left
hanging.
"""

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT

from distributed.conftest import launch, refuse_all

CASES = {
    "misspelt key": (["selection.quotta=20"], "selection.quotta is not a key of a recipe; did you mean 'quota'?"),
    "quota out of range": (["selection.quota=100"], "selection.quota is 100, allowed is less than 100"),
    "no assistant turn": (["data.train={chats}"], "line 1 is a chat without an answer of the assistant's"),
}
# Said by the same way; each a start of its own would show no more.
LATER = {
    "missing model": (["model.path=nowhere/model"], "model.path nowhere/model: no such folder"),
    "another whole batch": (["deepspeed={zero}"], "train_batch_size is 16, the recipe's .* makes it 8; say auto"),
    "positions of another model": (["selection.positions={positions}"], "the positions have 1 layers, the model has 6"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_once_on_two_ranks(case: str, tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "hello"}]}))
    overrides, says = CASES[case]
    given = (override.format(chats=tmp_path / "chats.jsonl") for override in overrides)
    done = launch(*given, f"run={tmp_path / 'run'}", deadline=120)
    assert done.status != 0
    assert len(done.refusals()) == 1, done.output
    assert re.search(says, done.refusals()[0])
    assert "Traceback" not in done.output
    assert (
        done.seconds < 100
    )  # nearly all of it is importing the libraries, twice on two cores that may have other work
    assert not list(tmp_path.glob("run/model*"))


def test_every_rank_is_told_the_same(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.json" for name in ("positions", "zero")}
    files["positions"].write_text("[[0]]")
    zero = {**json.loads((ROOT / "launch/zero3.json").read_text()), "train_batch_size": 16}
    files["zero"].write_text(json.dumps(zero))
    cases = {case: [override.format(**files) for override in overrides] for case, (overrides, _) in LATER.items()}
    said = refuse_all(tmp_path, cases)
    for case, (_, says) in LATER.items():
        assert re.search(says, said[case])
        assert not list(tmp_path.glob(f"{case}/model*"))


LAUNCHER = {
    "no GPUs": (["--num_gpus", "0"], "--num_gpus is 0, allowed is 1 or more"),
    "a hostfile that is not there": (
        ["--num_gpus", "2", "--hostfile", "{folder}/hosts"],
        "no such file; DeepSpeed would go on with this node alone",
    ),
    "a hostfile with a typo": (["--hostfile", "{folder}/typo"], "Hostfile contains a bad entry: node-1 slot=8"),
}


@pytest.mark.parametrize("case", LAUNCHER)
def test_a_mistake_in_the_launcher_command_ends_it(case: str, tmp_path: Path) -> None:
    (tmp_path / "typo").write_text("node-1 slot=8\n")
    flags, says = LAUNCHER[case]
    done = launch(f"run={tmp_path / 'run'}", flags=[flag.format(folder=tmp_path) for flag in flags], deadline=120)
    assert done.status != 0
    assert says in done.output
    assert done.output.count(says) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_accelerates_launcher_for_processors_is_refused(tmp_path: Path) -> None:
    """It starts one process, and tells accelerate to leave DeepSpeed out."""
    done = launch(f"run={tmp_path / 'run'}", ranks=1, environment={"ACCELERATE_USE_CPU": "True"}, deadline=120)
    assert done.status != 0
    assert "ACCELERATE_USE_CPU is set, so accelerate would leave DeepSpeed out" in "".join(done.refusals())
