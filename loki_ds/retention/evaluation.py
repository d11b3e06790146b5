"""An arm on as many processes as there are devices, on one node or several: each evaluates its
share of the documents, and the shares are put together.

Processes of their own because a second model must not be loaded beside a live ZeRO-3 configuration,
and because both arms must start from the same state. They are independent of each other, so any
lm-eval backend can be shared out, on GPUs or on CPUs. Nodes meet in a shared folder and in no
collective, which would run into its time limit while others evaluate.
"""

import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loki_ds.launcher import environment_of_one_process
from loki_ds.refusal import Refusal
from loki_ds.retention.parcels import ArmResult, Request, together
from loki_ds.retention.question import Answers, Arm, Kept, Question
from loki_ds.run_folder import remove

PATIENCE = 3.0  # seconds for the first process to fail as well


@dataclass(frozen=True)
class Nodes:
    """Which this node is, of all that evaluate together and see the same folder."""

    this: int = 0
    count: int = 1


def evaluate_shares(request: Request, folder: Path, nodes: Nodes = Nodes()) -> None:
    """Evaluate this node's shares of all that the request asks for, into `folder`; those that are
    there already, from an evaluation that was killed, are kept.

    Raises:
        Refusal: a process failed; `gather_shares` on another node then ends, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(nodes.this * request.processes, (nodes.this + 1) * request.processes)
    total = nodes.count * request.processes
    left = [number for number in numbers if not _share(folder, number, total).exists()]
    for number in left:
        asked = request.model_copy(update={"share": (number, total)})
        _share(folder, number, total).with_suffix(".request").write_text(asked.model_dump_json())
    failed = _failed(folder, nodes.this)
    try:
        places = [(number - numbers[0], _share(folder, number, total)) for number in left]
        processes = [_start(request, *place, shown=place == places[0]) for place in places]
        _run_together(processes, [_log(_share(folder, number, total)) for number in left], request.model)
    except BaseException:
        failed.touch()
        raise


def gather_shares(request: Request, folder: Path, nodes: Nodes = Nodes()) -> ArmResult:
    """Wait for the shares of all nodes and put them together; the folder goes.

    Raises:
        Refusal: another node failed.
    """
    total = nodes.count * request.processes
    shares = [_share(folder, number, total) for number in range(total)]
    while not all(share.exists() for share in shares):
        for node in range(nodes.count):
            if _failed(folder, node).exists():
                raise Refusal(
                    f"lm-eval on {request.model} failed on node {node}; its own message is in that node's log"
                )
        time.sleep(0.2)
    found: list[ArmResult] = [json.loads(share.read_text(encoding="utf-8")) for share in shares]
    remove(folder)
    return {**found[0], "tasks": together([share["tasks"] for share in found])}


def answered(answers: Answers, question: Question, arm: Arm, base: Kept | None = None) -> ArmResult:
    """A model's answers, from this node alone; documents answered before are not asked again.

    base: the base's answers, by which the question may stop.
    """
    key, request = question.key(arm, base), question.request(arm, base)
    if not answers.file(key).exists():
        forget_failures(answers.shares(key))
        evaluate_shares(request, answers.shares(key))
        answers.write(key, gather_shares(request, answers.shares(key)))
    return answers.read(key)


def forget_failures(folder: Path) -> None:
    """Take away the marks of an earlier attempt, before any node starts."""
    for mark in folder.glob("failed*"):
        mark.unlink()


def _share(folder: Path, number: int, total: int) -> Path:
    return folder / f"share{number}of{total}.json"


def _failed(folder: Path, node: int) -> Path:
    return folder / f"failed{node}"


def _start(request: Request, i: int, found: Path, shown: bool) -> subprocess.Popen:
    """A process on this node's i-th device or devices; shown: on the screen, where one progress bar
    is enough.
    """
    environment = environment_of_one_process()
    if request.device == "cuda":
        each, visible = request.devices_per_model, environment.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(device) for device in range((i + 1) * each)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[i * each : (i + 1) * each])
    command = [sys.executable, "-m", "loki_ds.retention.arm", str(found.with_suffix(".request")), str(found)]
    if shown:
        return subprocess.Popen(command, env=environment)
    with _log(found).open("w") as log:
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
