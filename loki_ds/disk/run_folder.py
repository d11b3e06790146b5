"""The run folder: where each stage's result lies, and whether it is there for the same inputs.

`stages.json` holds, for every finished stage, the inputs it was made from. A stage whose inputs are
unchanged is skipped; one whose inputs differ is refused by the name of what differs, never
overwritten. Nothing here knows what the stages do.
"""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO, Any

from loki_ds.disk.files import remove, sha256, write_json
from loki_ds.refusal import Refusal, short

STAGES = ("check", "attribute", "select", "implant", "retain")  # after which a job may end


class RunFolder:
    """Paths of one run."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.recipe = self.root / "recipe.yaml"
        self.attribution = self.root / "attribution"
        self.heat_map = self.attribution / "heat_map.png"
        self.training_curves = self.root / "training_curves.png"
        self.overlap_curve = self.attribution / "overlap.png"
        self.rehearsal = self.root / "rehearsal"
        self.base_answers = self.rehearsal / "answers.safetensors"
        self.written = self.rehearsal / "written.json"
        self.examples = self.root / "examples"
        self.positions = self.root / "positions.json"
        self.checkpoints = self.root / "checkpoints"
        self.model = self.root / "model"
        self.implant = self.root / "implant.safetensors"
        self.adapter = self.root / "adapter"
        self.training_log = self.root / "training_log.json"
        self.manifest = self.root / "manifest.json"
        self.costs = self.root / "costs.json"
        self.verification = self.root / "verify.json"
        self.tune = self.root / "tune"
        self.retention = self.root / "retention"
        self.report = self.root / "report"
        self.tracked = self.root / "tracked"
        self._stages = self.root / "stages.json"

    @property
    def products(self) -> list[Path]:
        """What leaves a run, if all of it is there."""
        return [self.positions, self.model, self.implant, self.adapter, self.verification]

    def lock(self) -> IO[str]:
        """Take the folder until the returned file is closed or this process ends, however it ends.

        Raises:
            Refusal: another process has it.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise Refusal(f"{self.root}: the run folder cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Refusal(
                f"{self.root}: another run is at work in this folder ({file.read() or 'who is not known'}); wait for "
                "it, or use run=FOLDER"
            ) from None
        except OSError as error:
            raise Refusal(
                f"{self.root}: the file system there keeps no locks ({error.strerror}), so two runs could write in "
                "this folder at once; use run=FOLDER on another"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        os.fsync(file.fileno())  # for other nodes to see
        return file

    def leave_if_empty(self) -> None:
        """Take the folder away again where nothing but the lock is in it."""
        if {file.name for file in self.root.iterdir()} <= {".lock"}:
            remove(self.root)

    def holder(self) -> str:
        """Who has the folder as seen here; empty if nobody, as on a node that does not share it."""
        file = self.root / ".lock"
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def finished(self, stage: str, inputs: dict[str, Any]) -> bool:
        """Whether this stage's result is there, made from these inputs.

        Raises:
            Refusal: a result is there, made from other inputs.
        """
        stored = self._read().get(stage)
        if stored is None:
            return False
        check_same_inputs(self.root, stage, stored, inputs)
        return True

    def has(self, stage: str) -> bool:
        """Whether this stage's result is there, whatever it was made from."""
        return self.inputs_of(stage) is not None

    def inputs_of(self, stage: str) -> dict[str, Any] | None:
        """What this stage's result was made from; None where there is none."""
        return self._read().get(stage)

    def made_from(self, stage: str, inputs: dict[str, Any]) -> bool:
        """Whether this stage's result, which may be redone for other inputs, is made from these."""
        stored = self.inputs_of(stage)
        return stored is not None and not _difference(stage, stored, json.loads(json.dumps(inputs)))

    def finish(self, stage: str, inputs: dict[str, Any]) -> None:
        """Note that the stage's result is complete."""
        write_json(self._stages, {**self._read(), stage: inputs})

    def record(self, *results: Path) -> None:
        """Note the SHA-256 of results (files or folders) in `manifest.json`, for their copies."""
        files = [
            file
            for result in results
            for file in (sorted(result.rglob("*")) if result.is_dir() else [result])
            if file.is_file()
        ]
        known = json.loads(self.manifest.read_text()) if self.manifest.exists() else {}
        write_json(self.manifest, {**known, **{str(file.relative_to(self.root)): sha256(file) for file in files}})

    @property
    def costs_so_far(self) -> dict[str, Any]:
        """What each stage took, by its name."""
        return json.loads(self.costs.read_text()) if self.costs.exists() else {}

    def note_cost(self, stage: str, cost: dict[str, Any]) -> None:
        """Put a stage's cost beside those of the stages done so far."""
        write_json(self.costs, {**self.costs_so_far, stage: cost})

    def _read(self) -> dict[str, Any]:
        if not self._stages.exists():
            return {}
        try:
            stages = json.loads(self._stages.read_text(encoding="utf-8"))
        except ValueError:
            stages = None
        if not isinstance(stages, dict):
            raise Refusal(f"{self._stages}: not the record of a run's stages; restore it, or delete {self.root}")
        return stages


def check_same_inputs(place: Path, stage: str, stored: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Refuse, by the name of what differs, a stage's result at `place` made from other inputs."""
    inputs = json.loads(json.dumps(inputs))  # as they were stored
    if difference := _difference(stage, stored, inputs):
        raise Refusal(f"{place}: {difference}; choose another folder with run=FOLDER, or delete this one")


def _difference(stage: str, stored: dict[str, Any], now: dict[str, Any]) -> str:
    """The first input that differs, in words: `its result of 'select' was made with quota 10, now
    it is 20`; empty where none does. A missing key counts as null: another version may have had it.
    """
    for key in [*now, *stored]:
        before, after = stored.get(key), now.get(key)
        if before != after and isinstance(before, dict) and isinstance(after, dict):
            if inner := _difference(stage, before, after):
                return inner
        elif before != after:
            was, now_is = (short(json.dumps(value), 40) for value in (before, after))
            return f"its result of {stage!r} was made with {key} {was}, now it is {now_is}"
    return ""
