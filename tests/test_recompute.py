"""The study's printed figures come out of its published answers, by Python alone."""

import json
import lzma
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

ANSWERS = ROOT / "eval/reports/promise/answers"
SCRIPT = ROOT / "eval/recompute.py"


def recomputed(script: Path) -> subprocess.CompletedProcess[str]:
    """Without any package on the path."""
    return subprocess.run([sys.executable, "-I", "-S", script], capture_output=True, text=True)


def test_each_arm_of_one_seed_stands_in_the_report_as_it_is_recomputed() -> None:
    done = recomputed(SCRIPT)
    assert done.returncode == 0, done.stderr
    arms = {name: values for name, *values in (line.split("; ") for line in done.stdout.splitlines())}
    assert {f"{name}.json.xz" for name in arms} == {file.name for file in ANSWERS.glob("*.xz")}
    table = (ROOT / "eval/reports/promise.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("| ")]
    printed = {f"{row[0]}-{row[1].replace(' ', '_')}": row for row in rows if len(row) == 9 and row[2] == "1"}
    assert printed
    for arm, row in printed.items():
        assert [value.rpartition(" ")[2] for value in arms[f"{arm}-0"]] == row[4:]


def test_another_file_is_named(tmp_path: Path) -> None:
    shutil.copytree(ANSWERS, tmp_path / "reports/promise/answers")
    shutil.copyfile(SCRIPT, tmp_path / "recompute.py")
    first = min((tmp_path / "reports/promise/answers").glob("*.xz"))
    first.write_bytes(first.read_bytes() + b"x")
    done = recomputed(tmp_path / "recompute.py")
    assert done.returncode == 1
    assert f"{first.name}: not the file that SHA256SUMS names" in done.stderr


@pytest.mark.parametrize("file", sorted(ANSWERS.glob("*.xz")), ids=lambda file: file.stem)
def test_answers_have_no_words_of_anybodys_data(file: Path) -> None:
    """Scores alone are published: the documents are others'."""
    for task in json.loads(lzma.decompress(file.read_bytes())).values():
        assert task.keys() == {"metrics", "base", "implanted"}
        assert len(task["base"]) == len(task["implanted"])
        for scores in (*task["base"], *task["implanted"]):
            assert all(isinstance(score, int | float) for score in scores)
