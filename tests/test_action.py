"""The GitHub Action's steps, run as they are written, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
MODEL = str(ROOT / "recipes/tiny/model")
FEW = f"""\
retention.abilities={{tasks: [tiny_facts], limit: 4}}
retention.include_path={ROOT / "eval/tasks/tiny"}
"""


class Runner:
    """What GitHub's runner does with a composite action's shell steps."""

    def __init__(self, folder: Path, **inputs: str) -> None:
        self.folder = folder
        self.inputs = {name: str(declared.get("default", "")) for name, declared in ACTION["inputs"].items()} | inputs
        self.outputs: dict[str, str] = {}

    def run(self) -> int:
        """The status of the first step that fails, or 0."""
        for step in ACTION["runs"]["steps"]:
            if "run" in step and self._is_wanted(step) and (status := self._shell(step)):
                return status
        return 0

    def _is_wanted(self, step: dict[str, str]) -> bool:
        name, operator, value = (step.get("if") or "inputs.base != ''").split()
        given = self.inputs[name.removeprefix("inputs.")]
        return (given == value.strip("'")) is (operator == "==")

    def _shell(self, step: dict[str, str]) -> int:
        output, summary = self.folder / "output", self.folder / "summary"
        output.write_text("")
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(summary),
            **{name: self._filled(value) for name, value in step.get("env", {}).items()},
        }
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(command, cwd=self.folder, env=environment)
        self.outputs |= dict(line.split("=", 1) for line in output.read_text().splitlines())
        return done.returncode

    def _filled(self, value: str) -> str:
        known = {f"inputs.{name}": given for name, given in self.inputs.items()}
        known |= {f"steps.retain.outputs.{name}": given for name, given in self.outputs.items()}
        return re.sub(r"\$\{\{ (\S+) \}\}", lambda named: known[named[1]], value)


def test_the_verdict_is_the_jobs_status_and_its_summary(tmp_path: Path) -> None:
    asked = {"base": MODEL, "model": MODEL, "suite": "", "settings": FEW, "install": "false"}
    runner = Runner(tmp_path, **asked, margin="0.01")
    assert runner.run() == 3
    assert runner.outputs == {"status": "3", "verdict": "not shown", "report": "retained/report"}
    assert "tiny_facts" in (tmp_path / "summary").read_text()
    assert (tmp_path / "retained/report/report.html").exists()

    wide = Runner(tmp_path, **asked, margin="0.9")  # what was answered is not asked again
    assert (wide.run(), wide.outputs["verdict"]) == (0, "kept")


def test_what_cannot_be_asked_fails_without_an_old_report(tmp_path: Path) -> None:
    (tmp_path / "retained/report").mkdir(parents=True)
    (tmp_path / "retained/report/report.md").write_text("of last week")
    runner = Runner(tmp_path, base=MODEL, model=MODEL, suite="quik", install="false")
    assert (runner.run(), runner.outputs["verdict"]) == (1, "not asked")
    assert (tmp_path / "summary").read_text() == "Retention: not asked.\n"


@pytest.mark.parametrize("name", ["branding", "description", "inputs", "name", "outputs", "runs"])
def test_it_has_what_github_reads(name: str) -> None:
    assert ACTION[name]


def test_every_input_is_read_and_said() -> None:
    text = (ROOT / "action.yml").read_text()
    for name, declared in ACTION["inputs"].items():
        assert declared["description"].endswith(".")
        assert f"inputs.{name}" in text
