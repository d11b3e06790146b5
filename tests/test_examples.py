"""The flat script does what the main job does: the same selection, and no byte outside the rows."""

import json
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

from loki_ds.export.implant_file import Implant
from loki_ds.selection.positions import Positions


def test_by_hand(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "examples/by_hand.py", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    losses = [float(line.rpartition(" ")[2]) for line in done.stdout.splitlines() if line.startswith("step")]
    assert losses[-1] < losses[0] / 5
    verified = json.loads(done.stdout[done.stdout.index("{") :])
    assert verified["identical_outside_rows"] is True
    assert verified["rows_changed"] == verified["rows_selected"] == 228
    assert Implant.load(tmp_path / "implant.safetensors").positions == Positions.load(tmp_path / "positions.json")
