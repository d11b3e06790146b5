"""Every command and path in every Markdown text is one that exists; every face lists its rooms."""

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from loki_ds.cli import commands as command_line
from loki_ds.cli.arguments import ARGUMENTS
from loki_ds.recipe import implant as implant_section
from loki_ds.recipe import sections as recipe
from loki_ds.recipe.file import load_recipe
from loki_ds.recipe.strict import Section
from loki_ds.tasks.loading import look_at_tasks

NOT_OURS = re.compile(r"^(\.|runs$|build$|dist$)")
TEXTS = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not any(NOT_OURS.match(part) for part in path.relative_to(ROOT).parts)
]
FOLDERS = "recipes|docs|eval|launch|loki_ds|tests|examples"
# What stands for a value in a text, and a value of its kind.
STANDS_FOR = {"Q": "10", "S": "random", "N": "8", "NAME": "h100", "GIB": "80", "X": "400", "...": "more"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code(text: str) -> list[str]:
    """Commands in code, in a line or in a block; a line that ends in a backslash goes on."""
    blocks = re.sub(r"\\\n\s*", "", text)
    lines = [line.strip() for line in blocks.splitlines() if line.startswith("    ")]
    inline = re.findall(r"`([^`]+)`", re.sub(r"\s*\n\s*", " ", blocks))
    return [re.sub(r"\s+#.*$|\s\[[^\]]*\]", "", command) for command in (*lines, *inline)]


def commands(start: str) -> list[tuple[str, str]]:
    return [
        (name(path), command)
        for path in TEXTS
        for command in code(path.read_text())
        if re.match(rf"(?:[A-Z_]+=\S+ )*{start}\b ?", command)
    ]


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_every_path_in_the_texts_is_there(path: Path) -> None:
    said = re.findall(rf"(?<![\w/.])(?:{FOLDERS})/[\w./*{{}},-]*[\w*/]", path.read_text())
    named = [part for part in said if not re.search(r"[A-Z]{3,}|runs/", part)]
    missing = [part for part in named if "{" not in part and not list(ROOT.glob(part.rstrip("/")))]
    assert missing == []


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_every_link_in_the_texts_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text())
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_no_line_of_a_text_is_wider_than_100(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith(("|", "    ", "!["))] == []


def test_every_make_target_in_the_texts_is_one() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {word for _, command in commands("make") for word in command.split()[1:]}
    assert {word for word in asked if "=" not in word} <= targets


def test_every_command_of_loki_ds_in_the_texts_parses() -> None:
    found = [pair for pair in commands("loki-ds") if len(pair[1].split()) > 2]
    assert len(found) > 10
    for text, command in found:
        words = [STANDS_FOR.get(word, word) for word in shlex.split(command)[1:]]
        try:
            command_line._parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"{text}: {command}")


def in_heads() -> list[tuple[str, str]]:
    """Commands in the comments that open recipes and launch files."""
    files = [*ROOT.glob("recipes/*/*.yaml"), *ROOT.glob("launch/*"), ROOT / "Dockerfile"]
    return [
        (name(path), command)
        for path in files
        if path.is_file()
        for command in re.findall(
            r"(?:deepspeed|sbatch) .*", re.sub(r"\\\n#?\s*", "", path.read_text()).replace("--recipe=", "--recipe ")
        )
    ]


def asked_of_recipes() -> list[tuple[str, str, list[str]]]:
    """Text, recipe and overrides of every command that runs or checks a recipe of ours."""
    found = []
    for text, command in [*commands("deepspeed"), *commands("loki-ds check"), *commands("sbatch"), *in_heads()]:
        words = shlex.split(command.split(" && ")[-1] if "docker" in command else command)
        named = [word for word in words if re.fullmatch(r"(?:recipes/)?[a-z][\w.-]*/[\w.-]+", word)]
        named = [
            word for word in named if (ROOT / "recipes" / word.removeprefix("recipes/")).with_suffix("").parent.exists()
        ]
        if named:
            overrides = [word for word in words if re.match(r"[a-z][a-z_.]*=", word) and "..." not in word]
            found.append((text, named[-1].removeprefix("recipes/").removesuffix(".yaml"), overrides))
    return found


def test_every_recipe_in_the_commands_takes_their_overrides() -> None:
    """Also that a suite which runs code is allowed to, and only such a one."""
    found = asked_of_recipes()
    assert len(found) > 60
    for text, asked, overrides in found:
        try:
            retention = load_recipe(ROOT / f"recipes/{asked}.yaml", overrides).retention
        except Exception as error:  # noqa: BLE001 (whatever it is, the text is wrong)
            pytest.fail(f"{text}: {asked} {overrides}: {error}")
        runs_code = any("humaneval" in group.tasks for group in retention.groups)
        assert retention.allow_code_execution == runs_code, f"{text}: {asked} {overrides}"


@pytest.mark.parametrize("face", sorted((ROOT / "loki_ds").glob("*/__init__.py")), ids=name)
def test_every_face_names_its_modules(face: Path) -> None:
    modules = {path.stem for path in face.parent.glob("*.py")} - {"__init__"}
    assert {module for module in modules if f"`{module}`" not in face.read_text()} == set()


def test_the_reference_has_every_section_and_every_command() -> None:
    text = (ROOT / "docs/reference.md").read_text()
    sections = {
        one.__name__ for module in (recipe, implant_section) for one in vars(module).values() if is_section(one)
    }
    listed = {one.strip() for members in re.findall(r"members: \[(.*)\]", text) for one in members.split(",")}
    assert sections - {"Section"} == listed
    assert not [command for command in ARGUMENTS if f"loki-ds {command}" not in text]


def is_section(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Section)


PROSE = [ROOT / file for file in ("README.md", "CONTRIBUTING.md", "recipes/README.md")]
PROSE += sorted((ROOT / "docs").rglob("*.md"))
NO_PROSE = re.compile(r"^```.*?^```$|^(?: {4}|#|\|)[^\n]*$", re.DOTALL | re.MULTILINE)
SENTENCES = re.compile(r"(?<=[.!?:])\s+(?=[A-Z(\"])")


def sentences(text: str) -> list[str]:
    """Of a Markdown file's paragraphs and lists; tables, headings and code are left out."""
    text = re.sub(r"`[^`]*`", "Code", NO_PROSE.sub("\n", text))
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("**", "")
    paragraphs = re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.)\s+", text)
    return [one for paragraph in paragraphs for one in SENTENCES.split(" ".join(paragraph.split())) if one]


def test_sentences_are_short() -> None:
    """Fifteen words on average, none over thirty."""
    lengths = {one: len(one.split()) for file in PROSE for one in sentences(file.read_text())}
    assert [one for one, words in lengths.items() if words > 30] == []
    assert len(lengths) > 500
    assert sum(lengths.values()) / len(lengths) < 15.5


def test_the_tasks_in_the_documentation_are_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/tasks/own-data.md").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_tasks").mkdir()
    for block in re.findall(r"```(?:yaml|python)\n(# my_tasks/.*?)```", text, re.DOTALL):
        (tmp_path / block.split()[1]).write_text(block)
    rows = [json.dumps({"question": f"What is {number}?", "answer": str(number)}) for number in range(3)]
    (tmp_path / "my_questions.jsonl").write_text("\n".join(rows))
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "[f(a=1)]"}]
    (tmp_path / "my_heldout.jsonl").write_text(json.dumps({"messages": chat}))
    questions, calls = look_at_tasks(["my_task", "my_calls"], ["my_tasks"], False, "retention")
    assert (questions.documents, questions.main["name"]) == ({"my_task": 3}, "exact_match")
    assert (calls.documents, calls.main["name"]) == ({"my_calls": 1}, "calls_match")
