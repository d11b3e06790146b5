"""The notebook's cells run from top to bottom, in an empty folder, on the tiny model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

CELLS = json.loads((ROOT / "examples/first_day.ipynb").read_text())["cells"]


@pytest.mark.slow
def test_the_first_day_ends_with_a_report(tmp_path: Path) -> None:
    """Its tasks lie beside the tiny suite's here, as the tiny model knows nothing else."""
    shutil.copytree(ROOT / "eval/tasks/tiny", tmp_path / "my_tasks")
    documents = tmp_path / "my_tasks/documents.py"
    documents.write_text(documents.read_text().replace("Path(__file__).parents[3]", f"Path({str(ROOT)!r})"))
    code = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
    (tmp_path / "cells.py").write_text("\n\n".join(code))
    asked = {"FIRST_DAY_MODEL": str(ROOT / "recipes/tiny/model"), "FIRST_DAY_KEEP": "tiny", "FIRST_DAY_GPUS": "0"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "cells.py"],
        cwd=tmp_path,
        env={**os.environ, **asked, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "first_day/report/report.json").read_text())
    assert [line["task"] for line in report["new_task"]] == ["my_orders"]
    assert {answer["gold"].split()[0] for answer in report["answers"]} <= {"track", "cancel", "return"}
    assert report["headline"] in done.stdout


def test_it_says_what_it_was_run_on() -> None:
    first = "".join(CELLS[0]["source"])
    assert "not on a GPU" in first
    assert all(cell.get("outputs", []) == [] for cell in CELLS)
