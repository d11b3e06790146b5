"""One arm of the paired evaluation: one model through lm-eval, in a process of its own.

`python -m loki_ds.retention.arm REQUEST.json RESULT.json`. A process of its own because a second model must not be loaded beside a
live ZeRO-3 configuration, and because both arms must start from the same state.
"""

import json
import logging
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loki_ds.ranks import environment_of_one_process
from loki_ds.refusal import Refusal, did_you_mean
from loki_ds.run_folder import write_json

LIBRARIES = ("lm_eval", "transformers", "torch")


def evaluate_arm(request: dict[str, Any], result: Path) -> None:
    """Run the request in a fresh process and write its result.

    request: `model` (folder), `dtype`, `device`, `batch_size`, `include_path`, `trust_remote_code`, and `groups`, each with `tasks`,
    `num_fewshot`, `limit` and `apply_chat_template`.
    """
    result.parent.mkdir(parents=True, exist_ok=True)
    asked = result.with_suffix(".request.json")
    write_json(asked, request)
    command = [sys.executable, "-m", "loki_ds.retention.arm", str(asked), str(result)]
    done = subprocess.run(command, check=False, env=environment_of_one_process())
    asked.unlink()
    if done.returncode == 2:
        raise SystemExit(2)  # the arm has said why
    if done.returncode:
        raise Refusal(f"lm-eval on {request['model']} ended with exit status {done.returncode}; its own message is above")


def run_lm_eval(request: dict[str, Any]) -> dict[str, Any]:
    """Evaluate every group of tasks; returns per task its version, metric and samples.

    Each sample: `doc_hash`, the metric's value `score`, and the model's `answer`.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=request["include_path"], include_defaults=request["include_path"] is None)
    for group in request["groups"]:
        _check_tasks(group["tasks"], manager)
    model = HFLM(
        pretrained=request["model"],
        dtype=request["dtype"],
        device=request["device"],
        batch_size=request["batch_size"],
        trust_remote_code=request["trust_remote_code"],
    )
    tasks: dict[str, Any] = {}
    for group in request["groups"]:
        results = _evaluate(
            simple_evaluate,
            request,
            model,
            tasks=group["tasks"],
            num_fewshot=group["num_fewshot"],
            limit=group["limit"],
            apply_chat_template=group["apply_chat_template"],
            task_manager=manager,
            bootstrap_iters=0,
        )
        for task, samples in results["samples"].items():
            tasks[task] = _task_result(results, task, samples)
    return {"tasks": tasks, "libraries": library_versions()}


def _evaluate(simple_evaluate: Any, request: dict[str, Any], *arguments: Any, **settings: Any) -> Any:
    """lm-eval's own `simple_evaluate`, allowed to run model-written code only if the recipe says so."""
    if request["allow_code_execution"]:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    try:
        return simple_evaluate(*arguments, confirm_run_unsafe_code=request["allow_code_execution"], **settings)
    except ValueError as error:
        if "confirm_run_unsafe_code" not in str(error):
            raise
        raise Refusal(
            f"retention: {', '.join(settings['tasks'])} run code that the model wrote, with all your rights; if this machine is isolated, "
            "say retention.allow_code_execution=true"
        ) from None


def library_versions() -> dict[str, str]:
    """The versions that may change a score."""
    return {name: version(name) for name in LIBRARIES}


def _check_tasks(tasks: list[str], manager: Any) -> None:
    for task in tasks:
        if task not in manager.all_tasks:
            raise Refusal(f"lm-eval knows no task {task!r}{did_you_mean(task, manager.all_tasks)}")


def _task_result(results: Any, task: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
    metric, chosen_filter = samples[0]["metrics"][0], samples[0]["filter"]
    samples = [sample for sample in samples if sample["filter"] == chosen_filter]
    return {
        "version": results["versions"][task],
        "metric": metric,
        "shots": results["n-shot"][task],
        "samples": [{"doc_hash": s["doc_hash"], "score": float(s[metric]), "answer": str(s["filtered_resps"][0])} for s in samples],
    }


def main() -> None:
    request, result = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    try:
        write_json(result, run_lm_eval(request))
    except Refusal as refusal:
        print(f"loki-ds: {refusal}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
