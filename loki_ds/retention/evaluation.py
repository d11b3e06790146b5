"""An arm on as many processes as there are devices, on one node or several: each evaluates its
share of the documents, and the shares are put together.

Processes of their own because a second model must not be loaded beside a live ZeRO-3 configuration.
They are independent, so any lm-eval backend can be shared out, on GPUs or on CPUs. Nodes meet in a
shared folder and in no collective, which would run into its time limit while others evaluate.
"""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loki_ds.disk.files import is_there, remove
from loki_ds.distributed.launcher import environment_of_one_process
from loki_ds.refusal import Refusal
from loki_ds.retention.messages import ArmResult, Request, together
from loki_ds.retention.question import Answers, Asked

log = logging.getLogger(__name__)

PATIENCE = 3.0  # seconds for the first process to fail as well


@dataclass(frozen=True)
class Nodes:
    """Which this node is, of all that evaluate together and see the same folder.

    processes: of each node, which may differ in devices; for one node, what the request says.
    """

    this: int = 0
    processes: tuple[int, ...] = ()

    def counts(self, request: Request) -> tuple[int, ...]:
        """Processes that evaluate a request, node by node."""
        return self.processes or (request.processes,)


def evaluate_shares(asked: Sequence[tuple[Request, Path]], nodes: Nodes = Nodes()) -> None:
    """Evaluate this node's shares of all that requests ask for, each into its folder; those that
    are there already, from an evaluation that was killed, are kept.

    Several requests are evaluated one after the other, in the same processes.

    Raises:
        Refusal: a process failed; `gather_shares` on another node then ends, too.
    """
    request = asked[0][0]
    counts = nodes.counts(request)
    first = sum(counts[: nodes.this])
    left = [_left(asked, first + i, sum(counts)) for i in range(counts[nodes.this])]
    started = [i for i, files in enumerate(left) if files]
    try:
        processes = [_start(request, i, left[i], shown=i == started[0]) for i in started]
        _run_together(processes, [_log(left[i][0]) for i in started], request.model)
    except BaseException:
        for _, folder in asked:
            if folder.exists():  # the first node has put the others together already
                _failed(folder, nodes.this).touch()
        raise


def _left(asked: Sequence[tuple[Request, Path]], number: int, total: int) -> list[Path]:
    """The files of a process' shares that are not there, each with its request beside it."""
    left = []
    for request, folder in asked:
        folder.mkdir(parents=True, exist_ok=True)
        file = _share(folder, number, total)
        if not file.exists():
            own = request.model_copy(update={"part": (number, total)})
            file.with_suffix(".request").write_text(own.model_dump_json())
            left.append(file)
    return left


def gather_shares(request: Request, folder: Path, nodes: Nodes = Nodes()) -> ArmResult:
    """Wait for the shares of all nodes and put them together; the folder goes.

    Raises:
        Refusal: another node failed.
    """
    counts = nodes.counts(request)
    shares = [_share(folder, number, sum(counts)) for number in range(sum(counts))]
    while not all(map(is_there, shares)):
        for node in range(len(counts)):
            if is_there(_failed(folder, node)):
                raise Refusal(
                    f"lm-eval on {request.model} failed on node {node}; its own message is in that node's log"
                )
        time.sleep(0.2)
    results: list[ArmResult] = [json.loads(share.read_text(encoding="utf-8")) for share in shares]
    remove(folder)
    return {**results[0], "tasks": together([share["tasks"] for share in results])}


def answers_of(asked: Sequence[Asked], answers: Answers) -> list[ArmResult]:
    """Models' answers, from this node alone; what was answered before is not asked again."""
    evaluate(unanswered(asked, answers), answers)
    return [answers.read(one.key) for one in asked]


def unanswered(asked: Sequence[Asked], answers: Answers) -> list[Asked]:
    """What is still to be evaluated, each once (a model may be compared with itself), with no marks
    of an attempt that failed; asked before any node starts.
    """
    left = list({answers.file(unasked.key): unasked for unasked in asked if not answers.hold(unasked)}.values())
    for unasked in left:
        for mark in answers.shares(unasked.key).glob("failed*"):
            mark.unlink()
    return left


def evaluate(asked: Sequence[Asked], answers: Answers, nodes: Nodes = Nodes()) -> None:
    """Evaluate this node's shares of what models are asked; the first node joins and keeps all."""
    for batch in _sharing_processes(asked):
        log.info("evaluating %s", ", ".join(_name(asking.request) for asking in batch))
        evaluate_shares([(asking.request, answers.shares(asking.key)) for asking in batch], nodes)
        for asking in batch if nodes.this == 0 else ():
            answers.write(asking, gather_shares(asking.request, answers.shares(asking.key), nodes))


def _sharing_processes(asked: Sequence[Asked]) -> list[Sequence[Asked]]:
    """Those that share processes, which start once: not one that waits for the other's answers."""
    if any(one.request.stop for one in asked):
        return [[one] for one in asked]
    return [asked] if asked else []


def _name(request: Request) -> str:
    return " with ".join(part for part in (request.model, request.adapter or request.implant) if part)


def _share(folder: Path, number: int, total: int) -> Path:
    return folder / f"share{number}of{total}.json"


def _failed(folder: Path, node: int) -> Path:
    return folder / f"failed{node}"


def _start(request: Request, i: int, answers: Sequence[Path], shown: bool) -> subprocess.Popen:
    """A process on this node's i-th device or devices, for the shares in these files; shown: on the
    screen, where one progress bar is enough.
    """
    environment = environment_of_one_process()
    if request.device == "cuda":
        each, visible = request.devices_per_model, environment.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(device) for device in range((i + 1) * each)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[i * each : (i + 1) * each])
    files = [str(path) for file in answers for path in (file.with_suffix(".request"), file)]
    command = [sys.executable, "-m", "loki_ds.retention", *files]
    if shown:
        return subprocess.Popen(command, env=environment)
    with _log(answers[0]).open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def _log(answers: Path) -> Path:
    return answers.with_suffix(".log")


def _run_together(processes: list[subprocess.Popen], logs: list[Path], model: str) -> None:
    """Wait for all of them; the first that fails ends the others, and says why once."""
    try:
        while any(process.poll() is None for process in processes) and not any(process.poll() for process in processes):
            time.sleep(0.1)
        if any(process.poll() for process in processes):
            # The first process, whose output is seen, fails of the same cause if it can.
            with suppress(subprocess.TimeoutExpired):
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
