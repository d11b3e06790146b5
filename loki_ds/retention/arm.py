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
from random import Random
from typing import Any

from loki_ds.ranks import environment_of_one_process
from loki_ds.refusal import Refusal, did_you_mean
from loki_ds.run_folder import write_json

LIBRARIES = ("lm_eval", "transformers", "torch")
LONGEST_PROMPT = 2000  # characters of a prompt that are kept for the report, from its end


def evaluate_arm(request: dict[str, Any], result: Path) -> None:
    """Run the request in a fresh process and write its result.

    request: `model` (folder), `dtype`, `device`, `batch_size`, `include_path`, `trust_remote_code`, and `groups`, each with `tasks`,
    `num_fewshot`, `limit` and `apply_chat_template`; `seed` draws the documents of a limit.
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

    Each sample: `doc_hash`, the metric's value `score`, the end of the `prompt`, and the model's `answer`.
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
            samples=_sample(group["tasks"], group["limit"], manager, request["seed"]),
            apply_chat_template=group["apply_chat_template"],
            task_manager=manager,
            bootstrap_iters=0,
        )
        for task, samples in results["samples"].items():
            tasks[task] = _task_result(results, task, samples)
    return {"tasks": tasks, "libraries": library_versions()}


def _sample(tasks: list[str], limit: int | None, manager: Any, seed: int) -> dict[str, list[int]] | None:
    """For each task, `limit` documents drawn by the seed (the same on both arms); None for all documents."""
    if limit is None:
        return None
    counts = {name: len(task.eval_docs) for name, task in manager.load(tasks)["tasks"].items()}
    return {name: sorted(Random(f"{seed}-{name}").sample(range(n), min(limit, n))) for name, n in counts.items()}


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
        "samples": [_sample_result(sample, metric) for sample in samples],
    }


def _sample_result(sample: dict[str, Any], metric: str) -> dict[str, Any]:
    return {
        "doc_hash": sample["doc_hash"],
        "score": float(sample[metric]),
        "prompt": str(sample["arguments"][0][0])[-LONGEST_PROMPT:],
        "answer": str(sample["filtered_resps"][0]),
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
