"""Abilities of the tiny world asked until they are decided, by the real lm-eval: of a model that
forgot, of the base itself, by one process and by two.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from safetensors.torch import load_file, save_file

from loki_ds.recipe.sections import ModelSection, RetentionSection
from loki_ds.retention.blocks import SMALLEST, Ability
from loki_ds.retention.evaluation import answers_of
from loki_ds.retention.messages import ArmResult, Stop
from loki_ds.retention.pairing import pair
from loki_ds.retention.question import Answers, Arm, Question
from loki_ds.retention.statistics import TaskChange, suite_changes
from loki_ds.tasks.loading import TaskFound, look_at_tasks
from loki_ds.tasks.metrics import Metric

MARGIN = 0.1
BASE = ROOT / "recipes/tiny/model"
ABILITIES = {"tasks": ["tiny_facts", "tiny_picking", "tiny_copying"], "limit": 200}
NEW = {"tasks": ["tiny_toolcalls"], "limit": 120, "apply_chat_template": True}


def question(processes: int = 1, **changes: Any) -> Question:
    own = {"abilities": ABILITIES, "new_task": NEW, "margin": MARGIN, "stop": "decided", "batch_size": 32}
    own |= {"include_path": ["eval/tasks/tiny"], "processes": processes, **changes}
    section = RetentionSection.model_validate(own)
    names = [name for group in section.groups for name in group.tasks]
    return Question(
        ModelSection(path=str(BASE), dtype="float32"),
        section,
        look_at_tasks(names, ["eval/tasks/tiny"], False, "retention"),
    )


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base without its first layer's FFN."""
    folder = tmp_path_factory.mktemp("forgetful") / "model"
    shutil.copytree(BASE, folder)
    tensors = load_file(folder / "model.safetensors")
    first = min(name for name in tensors if name.endswith("mlp.down_proj.weight"))
    tensors[first][:] = 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def both(asked: Question, model: Path, folder: Path) -> tuple[ArmResult, ArmResult]:
    answers = Answers(folder)
    base, after = answers_of(asked.of_both(Arm(BASE, "the base"), Arm(model, str(model)), answers), answers)
    return base, after


@pytest.fixture(scope="module")
def lost(forgetful: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ArmResult, ArmResult]:
    return both(question(), forgetful, tmp_path_factory.mktemp("lost"))


def changes(found: tuple[ArmResult, ArmResult]) -> dict[str, TaskChange]:
    return {change["task"]: change for change in suite_changes([*pair(*found)], MARGIN) if change["unit"] == "score"}


def test_what_is_lost_is_seen_before_the_last_document(lost: tuple[ArmResult, ArmResult]) -> None:
    judged = changes(lost)
    stopped = {name: change for name, change in judged.items() if change["n"] < change["documents"]}
    assert "tiny_picking" in stopped
    assert all(change["verdict"] in ("kept", "lost") for change in stopped.values())
    picking = judged["tiny_picking"]
    assert (picking["verdict"], picking["n"] % SMALLEST, picking["documents"]) == ("lost", 0, 300)
    assert picking["ci"][1] < -MARGIN
    assert picking["floor"] == picking["ci"][0]


def test_the_base_and_the_new_task_are_asked_all(lost: tuple[ArmResult, ArmResult]) -> None:
    base, implanted = (one["tasks"] for one in lost)
    assert [len(base[name]["samples"]) for name in ABILITIES["tasks"]] == [166, 200, 200]
    assert len(implanted["tiny_toolcalls"]["samples"]) == 120
    assert not any("stopped" in one for one in (*base.values(), implanted["tiny_toolcalls"]))


def test_its_documents_are_drawn_and_not_the_first(lost: tuple[ArmResult, ArmResult]) -> None:
    places = [sample["place"] for sample in lost[1]["tasks"]["tiny_picking"]["samples"]]
    assert places == sorted(set(places))
    assert places != list(range(len(places)))


def test_two_processes_ask_the_same(lost: tuple[ArmResult, ArmResult], forgetful: Path, tmp_path: Path) -> None:
    asked, answers = question(processes=2), Answers(tmp_path)
    of_base = asked.of(Arm(BASE, "the base"))
    answers.write(of_base, lost[0])
    (found,) = answers_of([asked.of(Arm(forgetful, "the other"), answers.file(of_base.key))], answers)
    assert found["tasks"] == lost[1]["tasks"]


def test_the_base_itself_is_kept(tmp_path: Path) -> None:
    kept = changes(both(question(new_task=None), BASE, tmp_path))
    assert [(change["verdict"], change["n"] < change["documents"]) for change in kept.values()] == [("kept", True)] * 3


def test_base_results_are_those_of_any_question_that_does_not_stop() -> None:
    base = Arm(BASE, "the base")
    key = question().key(base)
    assert "stop" not in key
    kept = Answers(Path("answers")).file(key)
    asked = question().key(Arm(BASE, "another"), kept)["stop"]
    assert (asked["margin"], asked["abilities"], "base" in asked) == (MARGIN, 1, False)
    assert question(stop="never").key(Arm(BASE, "another"), kept).keys() == key.keys()


# --- one ability ----------------------------------------------------------------------------------


TWO = {"large": 300, "small": 100}


def ability(by_size: bool = True, unit: Any = "score", better: bool = True, subtasks: dict[str, int] = TWO) -> Ability:
    """Two subtasks, of 300 and of 100 documents, each of which the base has half right."""
    own: Metric = {"name": "acc", "metric": "acc", "filter": "none", "unit": unit, "higher_is_better": better}
    found = TaskFound("both", subtasks, [own], by_size, "digest")
    order = [(name, place) for name, count in found.documents.items() for place in range(count)]
    samples: Any = [{"cluster": name, "place": place, "scores": [float(place % 2)]} for name, place in order]
    return Ability(found, {**asdict(found), "version": {}, "shots": {}, "samples": samples}, order[::-1])  # type: ignore[typeddict-item]


def answer(one: Ability, score: float) -> None:
    """Every document of a block with that score."""
    samples: Any = [{"cluster": name, "place": place, "scores": [score]} for name, place in one.block()]
    one.take(samples)


def test_subtasks_that_count_alike_weigh_by_their_share() -> None:
    """All that the base had wrong in the small one is right, and nothing else changes."""
    even, by_size = ability(by_size=False), ability()
    for one in (even, by_size):
        while block := one.block():
            samples: Any = [
                {"cluster": name, "place": place, "scores": [1.0 if name == "small" else place % 2]}
                for name, place in block
            ]
            one.take(samples)
    assert sum(even.gains) / 400 == pytest.approx(0.5 / 2)
    assert sum(by_size.gains) / 400 == pytest.approx(50 / 400)


def test_a_limits_documents_stand_for_all() -> None:
    """A sample of one task says what it can of all; of several subtasks, each drawn by itself, it
    is asked whole and judged as any other.
    """
    stop = Stop(base="", base_key="", abilities=1, margin=0.01)
    one, several = ability(subtasks={"one": 400}), ability()
    for sampled in (one, several):
        sampled.order = sampled.order[:100]
        sampled.__post_init__()
        while block := sampled.block():
            sampled.take([{"cluster": n, "place": p, "scores": [p % 2]} for n, p in block])  # type: ignore[typeddict-item]
        assert sampled.over(stop, 1)
    assert (one.documents, several.bounds) == (400, None)
    assert one.bounds is not None
    assert -0.2 < one.bounds.low < -0.01 < one.bounds.high  # nothing changed, and 300 are not seen


def test_less_is_better_where_the_metric_says_so() -> None:
    one = ability(better=False)
    answer(one, 1.0)
    assert set(one.gains) == {0.0, -1.0}


def test_scores_without_bounds_are_asked_all() -> None:
    stop, nats, unbounded = Stop(base="", base_key="", abilities=1, margin=0.5), ability(unit="nats"), ability()
    assert len(nats.block()) == 400
    answer(unbounded, 7.0)
    assert len(unbounded.block()) == 350
    assert not unbounded.over(stop, 1)
