"""An arm on as many processes as there are devices: each evaluates its share of the documents, and
the shares are put together.

Processes of their own because a second model must not be loaded beside a live ZeRO-3 configuration,
and because both arms must start from the same state. They are independent of each other, so any
lm-eval backend can be shared out, on GPUs or on CPUs.
"""

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from loki_ds.launcher import environment_of_one_process
from loki_ds.refusal import Refusal
from loki_ds.retention.parcels import ArmResult, Request, TaskSamples

PATIENCE = 3.0  # seconds for the first process to fail as well


def evaluate_arm(request: Request) -> ArmResult:
    """Evaluate one model on everything the request asks for, on all documents.

    Raises:
        Refusal: a process failed.
    """
    count = request.processes
    with TemporaryDirectory() as folder:
        files = [(Path(folder, f"request{i}.json"), Path(folder, f"share{i}.json")) for i in range(count)]
        for i, (asked, _) in enumerate(files):
            asked.write_text(request.model_copy(update={"share": (i, count)}).model_dump_json())
        processes = [_start(request, i, *pair) for i, pair in enumerate(files)]
        _run_together(processes, [_log(found) for _, found in files], request.model)
        return _together([json.loads(found.read_text()) for _, found in files])


def _start(request: Request, i: int, asked: Path, found: Path) -> subprocess.Popen:
    environment = environment_of_one_process()
    if request.device == "cuda":
        each, visible = request.devices_per_model, environment.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(device) for device in range((i + 1) * each)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[i * each : (i + 1) * each])
    command = [sys.executable, "-m", "loki_ds.retention.arm", str(asked), str(found)]
    if i == 0:
        return subprocess.Popen(command, env=environment)
    with _log(found).open("w") as log:  # one progress bar on the screen is enough
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def _log(found: Path) -> Path:
    return found.with_suffix(".log")


def _run_together(processes: list[subprocess.Popen], logs: list[Path], model: str) -> None:
    """Wait for all of them; the first that fails ends the others, and says why once."""
    try:
        while any(process.poll() is None for process in processes) and not any(process.poll() for process in processes):
            time.sleep(0.1)
        if any(process.poll() for process in processes):
            with suppress(
                subprocess.TimeoutExpired
            ):  # the first process, whose output is seen, fails of the same cause if it can
                processes[0].wait(PATIENCE)
        statuses = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    failed = next((i for i, status in enumerate(statuses) if status), None)
    if failed is None:
        return
    if failed > 0:
        print(logs[failed].read_text(), file=sys.stderr)
    if statuses[failed] == 2:
        raise SystemExit(2)  # the arm has said why
    raise Refusal(f"lm-eval on {model} ended with exit status {statuses[failed]}; its own message is above")


def _together(shares: list[ArmResult]) -> ArmResult:
    """The shares' samples under one roof, in the documents' order, so the result does not depend on
    how many processes there were.
    """
    tasks: dict[str, TaskSamples] = {}
    for share in shares:
        for name, found in share["tasks"].items():
            task = tasks.setdefault(name, {**found, "samples": [], "version": {}, "shots": {}})
            task["version"].update(found["version"])
            task["shots"].update(found["shots"])
            task["metrics"] = task["metrics"] or found["metrics"]
            task["samples"] += found["samples"]
    for task in tasks.values():
        task["samples"].sort(key=lambda sample: (sample["cluster"] or "", sample["place"]))
    return {**shares[0], "tasks": tasks}
