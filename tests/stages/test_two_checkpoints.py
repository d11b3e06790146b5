"""`loki-ds retain` on any two checkpoints, through the command line: the gate's three answers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, damaged_copy
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loki_ds.recipe.file import load_pair
from loki_ds.refusal import Refusal
from loki_ds.stages.two_checkpoints import retain_two

BASE = ROOT / "recipes/tiny/model"
ASKED = ["retention.include_path=eval/tasks/tiny", "retention.batch_size=64"]
FACTS = [*ASKED, "retention.abilities={tasks: [tiny_facts], limit: 100}"]


def retain(
    model: Path, out: Path, *asked: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loki_ds.cli.commands", "retain", str(BASE), str(model), *asked]
    return subprocess.run(
        [*command, "--out", str(out), "--gate"], cwd=ROOT, capture_output=True, text=True, env=environment
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all, so that the base answers once."""
    return tmp_path_factory.mktemp("two") / "out"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damaged_copy(tmp_path_factory.mktemp("damaged") / "model")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock LoRA that PEFT made, large enough to be felt."""
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(BASE),
        LoraConfig(r=4, lora_alpha=400, target_modules=["down_proj"], init_lora_weights=False),
    )
    model.save_pretrained(folder)
    return folder


def test_the_same_model_is_kept_where_its_documents_can_show_it(out: Path) -> None:
    done = retain(BASE, out, *FACTS, "retention.margin=0.05")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "gate: Kept: 1 task within 5 points of the base."
    assert len(list((out / "retention/answers").glob("*.json"))) == 1  # the same weights answer once


def test_judging_needs_neither_deepspeed_nor_trl_nor_peft(adapter: Path, tmp_path: Path) -> None:
    """Both models are asked; of an adapter it is said what it needs."""
    alone = {**os.environ, "PYTHONPATH": str(ROOT / "tests/retention/data/judging_alone")}
    few = [*ASKED, "retention.abilities={tasks: [tiny_facts], limit: 2}"]
    done = retain(BASE, tmp_path / "whole", *few, environment=alone)
    assert done.returncode == 3, done.stderr
    done = retain(adapter, tmp_path / "adapter", *few, environment=alone)
    assert done.returncode == 1
    assert f"{adapter}: an adapter needs PEFT, which is not installed (pip install peft)" in done.stderr


def test_too_few_documents_show_nothing(out: Path) -> None:
    done = retain(BASE, out, *FACTS)
    assert done.returncode == 3, done.stderr
    assert (
        "gate: Not shown: tiny_facts may have lost more than 1 point; too few documents or subtasks to tell."
        in done.stdout
    )


def test_a_damaged_model_has_lost(damaged: Path, out: Path) -> None:
    done = retain(damaged, out, *FACTS)
    assert done.returncode == 2, done.stderr
    assert done.stdout.splitlines()[-1].startswith("gate: Lost: tiny_facts by ")
    again = subprocess.run(
        [sys.executable, "-m", "loki_ds.cli.commands", "report", str(out), "--gate"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 2
    report = json.loads((out / "report/report.json").read_text())
    assert (report["verification"], report["mode"]) == (None, "checkpoint")
    page = (out / "report/report.html").read_text()
    assert "second model" in page
    assert 'id="model"' not in page  # nothing of ours was compared


def test_an_adapter_on_the_base(adapter: Path, out: Path) -> None:
    done = retain(adapter, out, *FACTS)
    assert done.returncode == 2, done.stderr
    report = json.loads((out / "report/report.json").read_text())
    assert report["mode"] == "adapter"
    assert report["origin"]["the adapter says it was trained on"] == str(BASE)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["retention.abilitys=quick"], "override 'retention.abilitys=quick': retention.abilitys is not a key"),
        (["--gat"], "unrecognized arguments: --gat"),
    ],
)
def test_a_gate_that_could_not_be_asked_ends_with_one(asked: list[str], says: str, tmp_path: Path) -> None:
    """2 would say that something was lost; both are known before anything is loaded."""
    done = retain(BASE, tmp_path / "out", *asked)
    assert done.returncode == 1
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_evaluation_that_fails_ends_with_one(tmp_path: Path) -> None:
    """The process that evaluates has said why, and ended with 2."""
    folder = Path(shutil.copytree(BASE, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    choice = {
        "task": "choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "d.jsonl")}},
    }
    shape = {
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
    }
    (tmp_path / "d.jsonl").write_text('{"text": "one two"}\n')
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/choice.yaml").write_text(json.dumps({**choice, **shape}))
    own = [f"retention.include_path={tmp_path / 'tasks'}", "retention.abilities={tasks: [choice]}"]
    done = retain(folder, tmp_path / "out", *own)
    assert done.returncode == 1, done.stderr
    assert "scores nan in bits per byte of the text" in done.stderr


def own_task(folder: Path, questions: list[str], **settings: Any) -> list[str]:
    """A task of one's own with these questions; the overrides that ask it."""
    (folder / "d.jsonl").write_text("".join(json.dumps({"q": question}) + "\n" for question in questions))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "d.jsonl"}}, "test_split": "test"}
    (folder / "own.yaml").write_text(json.dumps({"task": "own", **data, "doc_to_text": "{{q}}", **settings}))
    return [f"retention.include_path={folder}", "retention.abilities={tasks: [own]}"]


def test_what_the_model_has_no_room_for_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    asked = own_task(
        tmp_path,
        ["copy a"],
        output_type="generate_until",
        doc_to_target="a",
        generation_kwargs={"until": [], "max_gen_toks": 300},
        metric_list=[{"metric": "exact_match"}],
    )
    with pytest.raises(Refusal, match="task own asks for answers of up to 300 tokens"):
        retain_two(load_pair(str(BASE), asked), str(BASE), tmp_path / "out")
    assert not list((tmp_path / "out").glob("retention/**/*.json"))


def test_prompts_that_the_model_saw_cut_are_counted_in_the_report(tmp_path: Path) -> None:
    choice = {"output_type": "multiple_choice", "doc_to_choice": ["a", "b"], "doc_to_target": 0}
    asked = [*own_task(tmp_path, ["copy a " * 300, "copy a"], **choice), "model.dtype=float32"]
    report = retain_two(load_pair(str(BASE), asked), str(BASE), tmp_path / "out")
    assert report["settings"]["prompts that were cut"].startswith("own: 1 of 2 prompts looked at lose their beginning")


def test_a_checkpoint_that_lacks_a_tensor_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    """transformers would make it up at random, and the report would call it lost."""
    folder = Path(shutil.copytree(BASE, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.self_attn.q_proj.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "not there of what config.json asks for: model.layers.1." in refused(folder, tmp_path / "out", *FACTS[2:])
    assert not (tmp_path / "out/retention").exists()


def refused(model: Path, out: Path, *asked: str) -> str:
    with pytest.raises(Refusal) as refusal:
        retain_two(load_pair(str(BASE), [*ASKED, *asked]), str(model), out)
    return str(refusal.value)


def test_what_cannot_be_compared_is_one_sentence(adapter: Path, tmp_path: Path) -> None:
    assert (
        refused(tmp_path, tmp_path / "out")
        == f"{tmp_path}: neither a model (config.json) nor a PEFT adapter (adapter_config.json)"
    )
    assert "knows no task 'tiny_fact'" in refused(BASE, tmp_path / "out", "retention.abilities={tasks: [tiny_fact]}")
    assert "which is retired" in refused(adapter, tmp_path / "out", "retention.backend=vllm")
    (tmp_path / "recipe.yaml").write_text("run: here")
    assert "a run's own folder, whose report would be lost" in refused(BASE, tmp_path)
