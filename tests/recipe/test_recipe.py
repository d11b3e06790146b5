"""Recipes are strict: each mistake gets one sentence with the file, the key, what was found and
what is allowed.
"""

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT

from loki_ds.recipe.file import check_files, load_recipe
from loki_ds.recipe.sections import RetentionSection
from loki_ds.refusal import Refusal
from loki_ds.retention.statistics import least_margin

RECIPES = sorted(ROOT.glob("recipes/*/*.yaml"))


def test_every_recipe_was_found() -> None:
    assert len(RECIPES) == 48


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_is_valid_and_opens_with_its_command(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.run == f"runs/{path.parent.name}/{path.stem}"
    assert f"launch/implant.py --recipe {path.relative_to(ROOT)}" in path.read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "eval/suites").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_suites_samples_can_show_that_a_task_is_kept(path: Path) -> None:
    groups = load_recipe(ROOT / "recipes/tiny/loki.yaml", [f"retention.abilities={path.stem}"]).retention.abilities
    for group in groups:
        assert group.limit is None or least_margin(group.limit) <= RetentionSection.model_fields["margin"].default


def test_the_recipe_in_the_documentation_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs/tasks/recipe.md").read_text()
    (tmp_path / "my_recipe.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    found = load_recipe(tmp_path / "my_recipe.yaml")
    assert (found.implant.fade, found.selection.quota) == (0.8, 10)
    assert found.tune is not None


@pytest.mark.parametrize("path", [*RECIPES, ROOT / "docs/tasks/recipe.md"], ids=lambda path: path.stem)
def test_no_task_is_asked_for_twice(path: Path, tmp_path: Path) -> None:
    if path.suffix == ".md":
        (tmp_path / "recipe.yaml").write_text(path.read_text().split("```yaml\n")[1].split("```")[0])
        path = tmp_path / "recipe.yaml"
    names = [name for group in load_recipe(path).retention.groups for name in group.tasks]
    assert len(names) == len(set(names))


def test_the_commands_in_the_texts_are_the_recipes() -> None:
    texts = "".join((ROOT / name).read_text() for name in ("README.md", "recipes/README.md"))
    named = {ROOT / path for path in re.findall(r"recipes/[\w.-]+/[\w.-]+\.yaml", texts)}
    listed = {ROOT / f"recipes/{name}.yaml" for name in re.findall(r"^\| `([\w.-]+/[\w.-]+)` \|", texts, re.MULTILINE)}
    assert set(RECIPES) == listed
    assert [path for path in named if not path.is_file()] == []


def test_the_tiny_rates_are_those_the_rule_chose() -> None:
    found = json.loads((ROOT / "eval/reports/learning_rates.json").read_text())
    for name, of_recipe in found.items():
        recipe = load_recipe(ROOT / f"recipes/tiny/{name}.yaml")
        assert recipe.training["learning_rate"] == float(of_recipe["chosen"]), name
        assert len({run["rate"] for run in of_recipe["tried"]}) >= 3


def test_overrides_are_part_of_the_run_folders_name() -> None:
    recipe = load_recipe(ROOT / "recipes/tiny/loki.yaml", ["selection.quota=20", "training.learning_rate=1e-4"])
    assert recipe.selection.quota == 20
    assert recipe.training["learning_rate"] == 1e-4
    assert recipe.run == "runs/tiny/loki+selection.quota=20+training.learning_rate=1e-4"


@pytest.mark.parametrize(
    "override",
    [
        "retention.abilities=quick",
        "retention.margin=0.02",
        "training.report_to=tensorboard",
        "training.logging_steps=1",
        "training.hub_token=hf_secret",
        "attribution.batch_size=8",
    ],
)
def test_what_changes_no_result_names_no_folder(override: str) -> None:
    recipe = load_recipe(ROOT / "recipes/tiny/loki.yaml", [override, "selection.quota=20"])
    assert recipe.run == "runs/tiny/loki+selection.quota=20"


def test_one_place_of_a_list_can_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text((ROOT / "recipes/tiny/replay.yaml").read_text())
    assert load_recipe(path, ["data.train.1.weight=7"]).data.train[1].weight == 7
    with pytest.raises(Refusal, match="train is a list of 2, 5 is none of its places"):
        load_recipe(path, ["data.train.5=x"])


def test_a_share_of_skill_needs_a_new_task() -> None:
    with pytest.raises(Refusal, match=r"tune\.budget\.skill needs retention\.new_task"):
        load_recipe(ROOT / "recipes/tiny/loki.yaml", ["retention.new_task=null", "tune={budget: {skill: 0.5}}"])


def test_a_key_of_a_section_that_is_null_can_be_overridden(tmp_path: Path) -> None:
    """A run folder's own recipe says `tune: null` where nothing was tuned."""
    path = tmp_path / "recipe.yaml"
    path.write_text((ROOT / "recipes/tiny/loki.yaml").read_text() + "\ntune: null\n")
    found = load_recipe(path, ["tune.budget={skill: 0.95}"]).tune
    assert found is not None
    assert found.budget.skill == 0.95


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


WHOLE = (
    "model: {path: m}\nretention: {abilities: {tasks: [t]}}\nprotected: {prompts: p}\n"
    "data: {train: d}\ntraining: {seed: 1, max_steps: 5}\n"
)


def test_a_recipe_stands_on_others_merged_from_left_to_right(tmp_path: Path) -> None:
    write(
        tmp_path,
        whole=WHOLE,
        longer="training: {max_steps: 9, learning_rate: 1e-3}\nselection: {quota: 5}\n",
        own="base: [whole.yaml, longer.yaml]\nselection: {quota: 7}\nprotected: null\nimplant: {mode: full}\n",
        above="base: own.yaml\nimplant: {pull: 3.0}\n",
    )
    recipe = load_recipe(tmp_path / "above.yaml", ["training.seed=2"])
    assert recipe.training == {"seed": 2, "max_steps": 9, "learning_rate": 1e-3}
    assert (recipe.selection.quota, recipe.protected, recipe.implant.mode, recipe.implant.pull) == (7, None, "full", 3)
    assert recipe.run == f"runs/{tmp_path.name}/above+training.seed=2"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"own": "base: a.yaml\n", "a": WHOLE.replace("seed", "sed")}, r"a\.yaml: training\.sed is not a key"),
        ({"own": "base: a.yaml\nselection: {quota: 0}\n", "a": WHOLE}, r"own\.yaml: selection\.quota is 0"),
        ({"own": "base: a.yaml\n", "a": WHOLE + "implant: {lora: {rnk: 1}}\n"}, r"a\.yaml: implant\.lora\.rnk is not"),
        ({"own": "base: a.yaml\n", "a": "base: own.yaml\n"}, r"own\.yaml: the key base leads back to this file"),
        ({"own": "base: nowhere.yaml\n"}, r"nowhere\.yaml: the recipe cannot be read"),
        ({"own": "base: {a: 1}\n"}, r"own\.yaml: base is .*, allowed is a recipe file or a list of them"),
        ({"own": "base: a.yaml\n", "a": "- 1\n"}, r"a\.yaml: a recipe is a mapping"),
    ],
)
def test_a_mistake_names_the_file_it_came_from(files: dict[str, str], says: str, tmp_path: Path) -> None:
    write(tmp_path, **files)
    with pytest.raises(Refusal, match=says):
        load_recipe(tmp_path / "own.yaml")


def test_an_override_is_named_as_such() -> None:
    with pytest.raises(Refusal, match=r"^override 'selection\.quota=0': selection\.quota is 0"):
        load_recipe(ROOT / "recipes/tiny/loki.yaml", ["selection.quota=0"])


def test_no_is_a_strategy_of_the_trainers_and_not_false() -> None:
    recipe = load_recipe("recipes/tiny/loki.yaml", ["training.eval_strategy=no", "training.save_strategy=no"])
    assert (recipe.training["eval_strategy"], recipe.training["save_strategy"]) == ("no", "no")


def test_the_run_folder_can_be_named() -> None:
    assert load_recipe(ROOT / "recipes/tiny/loki.yaml", ["run=/tmp/here"]).run == "/tmp/here"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("selection.quotta=20", "selection.quotta is not a key of a recipe; did you mean 'quota'?"),
        ("selektion.quota=20", "selektion is not a key of a recipe; did you mean 'selection'?"),
        ("protected.subject=[facts]", "protected.subject is not a key of a recipe; did you mean 'subjects'?"),
        ("selection.quota=0", "selection.quota is 0, allowed is greater than 0"),
        ("selection.quota=100", "selection.quota is 100, allowed is less than 100"),
        ("selection.quota=ten", "selection.quota is 'ten', allowed is a valid number"),
        ("selection.strategy=lowest", "selection.strategy is 'lowest', allowed is 'layer_balanced'"),
        ("attribution.steps=1.5", "attribution.steps is 1.5, allowed is a valid integer"),
        ("model.dtype=fp8", "model.dtype is 'fp8', allowed is 'float32', 'bfloat16' or 'float16'"),
        ("training.learning_rat=1", "training.learning_rat is not a key .* did you mean 'learning_rate'?"),
        ("training.output_dir=x", "training.output_dir is not a key to set here: it follows from the run folder"),
        ("training.deepspeed=x", "it follows from the recipe's own key 'deepspeed'"),
        ("base=recipes/tiny/full.yaml", "base is not a key of a recipe"),
        (
            "implant={mode: suppress, pull: 1.0}",
            "implant.pull needs implant.mode mask, rows, lora, full or peft, it is suppress",
        ),
        ("implant={mode: suppress, fade: 0.5}", "implant.fade needs implant.mode mask, rows, lora, full or peft"),
        ("implant={fade: 1}", "implant.fade is 1, allowed is less than 1"),
        ("implant={pull: 3, fade: 0.5}", "implant.pull is 3 and implant.fade 0.5; one of them must be 0"),
        ("protected=null", "needs a protected set"),
        (
            "selection.where=gate_up",
            "selection.where gate_up has no scores, and selection.strategy .* set it to random",
        ),
        ("selection.layers=[3, 1]", r"selection.layers is \[3, 1\], allowed is the first and the last, in order"),
        ("selection={layers: [0, 1], positions: p.json}", "selection.layers and selection.positions choose rows both"),
        ("tune={budget: {skill: 1}, scales: [0.5, 0.5]}", r"tune.scales is \[0.5, 0.5\], allowed is each once"),
        ("data={train: [1]}", "override 'data=.*: data.train.0 is 1, allowed is"),
        ("model.path='$HOME/m'", "override .model.path=.*: model.path: '.HOME/m' has a variable"),
        ("implant.quiet={}", "implant.quiet is {}, which is retired: implant.fade with implant.rehearse.prompts"),
        ("protected.tasks=[mmlu]", "protected needs one source"),
        ("attribution.stop.overlap=0.9", "attribution.stop is {'overlap': 0.9}, which is retired: .*per_subject"),
        ("implant.frozen_inputs.share=0.5", "implant.frozen_inputs is .*, which is retired: .*implant.fade"),
        ("implant.rehearse.stop_at_drift=0.1", "implant.rehearse.stop_at_drift is 0.1, which is retired: the drift"),
        (
            "implant.rehearse.share=0.1",
            "rehearse.share is 0.1, which is retired: each of implant.rehearse.prompts",
        ),
        ("implant.rehearse.prompts=protected", "prompts is 'protected', allowed is {protected: SHARE}"),
        ("implant.rehearse.prompts={protected: 0.5, base: 0.5}", "has shares of 1 together, allowed is less than 1"),
        ("implant.rehearse.loss=ce", "implant.rehearse.loss is 'ce', which is retired: .*data.train with a weight"),
        ("selection.strategy=layer_gain", "selection.strategy is layer_gain, which is retired: .*random"),
        ("tune={scales: [[0, 1]], budget: {skill: 1}}", "tune.scales is .*scales by layer are retired"),
        ("attribution.batch_size=many", "attribution.batch_size is 'many', allowed is"),
        ("quota", "must be written key=value"),
        ("model.path.x=1", "path is a single value, not a section"),
        ("tune={budget: {skill: 1}, scales: [0.0]}", "tune.scales has nothing but 0, which is the base"),
        ("model.path=[", "is not YAML"),
    ],
)
def test_a_wrong_override_is_named(override: str, says: str) -> None:
    with pytest.raises(Refusal, match=says.replace("?", r"\?")):
        load_recipe(ROOT / "recipes/tiny/loki.yaml", [override])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [", "not a YAML recipe"),
        ("- a\n- b\n", "mapping of sections"),
        ("run: a\nrun: b\n", "the key 'run' is given twice"),
        ("model: !!python/object/apply:os.getcwd []\n", "not a YAML recipe"),
        ("{}", "the key model is missing"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(Refusal, match=says) as refusal:
        load_recipe(path)
    assert str(path) in str(refusal.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(Refusal, match=r"nowhere\.yaml: no such recipe"):
        load_recipe("nowhere.yaml")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("protected.prompts=gone.jsonl", "protected.prompts: gone.jsonl is not there"),
        ("implant.rehearse.prompts={gone.jsonl: 0.1}", "prompts: gone.jsonl: gone.jsonl is not there"),
        (
            "retention.include_path=[eval/tasks/tiny, gone]",
            "retention.include_path is gone, which is no folder of tasks",
        ),
    ],
)
def test_what_is_not_there_is_said_before_a_library_is_loaded(override: str, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        check_files(load_recipe("tiny/recommended", [override]))
