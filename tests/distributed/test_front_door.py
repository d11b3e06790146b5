"""A fault in each part of the front door, in a recipe of each family: one sentence within seconds,
non-zero, and nothing left behind.
"""

import json
from pathlib import Path

import pytest
import trl

from distributed.conftest import ROOT, launch, refuse_all
from distributed.test_families import FAMILIES, make_model

PICTURES = Path(trl.__file__).parent / "chat_templates/smolvlm.jinja"
ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
NULL = {"messages": [ROW["messages"][0], {"role": "assistant", "content": None}]}
# What is wrong, by the overrides that make it so and the sentence it becomes.
FAULTS: dict[str, tuple[str, list[str], str]] = {
    "data": ("llama 3.1", ["data.train={tmp}/null.jsonl"], "null.jsonl: line 2 has None as the content of turn 2"),
    "template": ("gemma 3", [f"training.chat_template_path={PICTURES}"], "the chat template shows no turns of text"),
    "base": ("qwen 2.5", ["model.path={tmp}/quantized"], "by config.json the weights are quantized (awq)"),
    "settings": (
        "qwen 3",
        ["deepspeed={tmp}/zero.json"],
        "gradient_clipping is 7, the recipe's training.max_grad_norm",
    ),
}
# Of the machine, and of the tasks, at which a job without an evaluation does not look.
ENDING: dict[str, tuple[str, list[str], str]] = {
    "machine": ("olmo 2", ["run=/proc/run"], "/proc/run: the run folder cannot be written"),
    "tasks": (
        "mistral",
        ["retention.abilities=[{{tasks: [mmul]}}]"],
        "lm-eval knows no task 'mmul'; did you mean 'mmlu'?",
    ),
}


def faulty(place: Path, family: str, overrides: list[str]) -> tuple[Path, list[str]]:
    """A recipe of the family, and a run of it that has the fault; what is given lies in a place."""
    make_model(family, place / "model")
    make_model(family, place / "quantized")
    config = json.loads((place / "quantized/config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (place / "quantized/config.json").write_text(json.dumps(config))
    for name, rows in {"good": [ROW], "null": [ROW, NULL]}.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    zero = json.loads((ROOT / "launch/zero3.json").read_text())
    (place / "zero.json").write_text(json.dumps({**zero, "gradient_clipping": 7}))
    recipe = sorted((ROOT / "recipes" / FAMILIES[family][0]).glob("*-q10.yaml"))[0]
    own = [f"model.path={place / 'model'}", f"data.train={place / 'good.jsonl'}"]
    return recipe, [*own, *(override.format(tmp=place) for override in overrides)]


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The run folders, and the sentence that each fault became."""
    folder, cases, recipes = tmp_path_factory.mktemp("faults"), {}, {}
    for part, (family, overrides, _) in FAULTS.items():
        recipes[part], cases[part] = faulty(folder / f"{part}-given", family, overrides)
    return folder, refuse_all(folder, cases, recipes)


@pytest.mark.parametrize("part", FAULTS)
def test_a_fault_is_one_sentence_before_anything_is_made(part: str, refused: tuple[Path, dict[str, str]]) -> None:
    folder, said = refused
    assert FAULTS[part][2] in said[part]
    assert {path.name for path in (folder / part).glob("*")} <= {".lock", "examples"}


@pytest.mark.parametrize("part", ENDING)
def test_a_fault_ends_the_job(part: str, tmp_path: Path) -> None:
    family, overrides, says = ENDING[part]
    recipe, given = faulty(tmp_path, family, overrides)
    done = launch(f"run={tmp_path / 'run'}", *given, recipe=recipe, deadline=120)
    assert done.status != 0
    assert len(done.refusals()) == 1, done.output
    assert says in done.refusals()[0]
    assert "Traceback" not in done.output
    assert done.seconds < 100  # on two cores that may have other work; alone about 10
    assert {path.name for path in (tmp_path / "run").glob("*")} <= {".lock", "examples"}
