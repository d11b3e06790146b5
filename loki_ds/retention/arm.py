"""One arm of the paired evaluation, or a share of its documents: one model through lm-eval, in a
process of its own.

`python -m loki_ds.retention.arm REQUEST.json RESULT.json`, started by `evaluation`. Knows lm-eval;
knows nothing of the other arm.
"""

import hashlib
import json
import logging
import os
import sys
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from loki_ds.launcher import end_with_parent
from loki_ds.recipe import TaskGroup
from loki_ds.refusal import Refusal, shown_once
from loki_ds.retention.parcels import ArmResult, Request, Sample, TaskSamples
from loki_ds.run_folder import write_json
from loki_ds.tasks import members_of, runs_code, task_manager, unpaired_metrics

LIBRARIES = {"hf": ("lm_eval", "transformers", "torch"), "vllm": ("lm_eval", "vllm", "transformers", "torch")}
LONGEST_PROMPT = 2000  # characters of a prompt that are kept for the report, from its end


def run_lm_eval(request: Request) -> ArmResult:
    """Evaluate this process' share of the documents of every group of tasks."""
    from lm_eval import simple_evaluate

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = task_manager(request.tasks, request.include_path, "retention")
    model = _model(request)
    found: dict[str, TaskSamples] = {}
    for group in request.groups:
        chosen = _chosen(group, manager, request)
        if chosen is not None and not any(chosen.values()):
            continue  # fewer documents than processes
        results = _evaluate(
            simple_evaluate,
            request,
            model,
            tasks=group.tasks if chosen is None else [name for name, documents in chosen.items() if documents],
            num_fewshot=group.num_fewshot,
            samples=chosen,
            apply_chat_template=group.apply_chat_template,
            task_manager=manager,
            bootstrap_iters=0,
        )
        for name in group.tasks:
            found[name] = _merged(name, members_of(name, manager), results)
    return {"tasks": found, "tokenizer": _tokenizer_digest(model), "libraries": library_versions(request.backend)}


def _model(request: Request) -> Any:
    from lm_eval.api.registry import get_model

    settings = {
        "pretrained": request.model,
        "tokenizer": request.tokenizer,
        "dtype": request.dtype,
        "trust_remote_code": request.trust_remote_code,
    }
    if request.backend == "vllm":
        try:
            return get_model("vllm")(**settings, tensor_parallel_size=request.devices_per_model, batch_size="auto")
        except ModuleNotFoundError:
            raise Refusal(
                "retention.backend is vllm, and vllm is not installed; install lm-eval[vllm] or say hf"
            ) from None
    spread = {"parallelize": True} if request.devices_per_model > 1 else {"device": request.device}
    return get_model("hf")(**settings, **spread, batch_size=request.batch_size)


def _chosen(group: TaskGroup, manager: Any, request: Request) -> dict[str, list[int]] | None:
    """The documents of each task: `limit` of them drawn by the seed, the same on both arms, and of
    those this process' share.
    """
    share, of = request.share
    if group.limit is None and of == 1:
        return None
    chosen = {}
    for name, task in manager.load(group.tasks)["tasks"].items():
        count = len(task.eval_docs)
        drawn = sorted(Random(f"{request.seed}-{name}").sample(range(count), min(group.limit or count, count)))
        chosen[name] = drawn[share::of]
    return chosen


def _evaluate(simple_evaluate: Any, request: Request, model: Any, **settings: Any) -> Any:
    """lm-eval's own `simple_evaluate`, allowed to run model-written code only if the recipe says
    so.
    """
    if request.allow_code_execution:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    try:
        return simple_evaluate(model, confirm_run_unsafe_code=request.allow_code_execution, **settings)
    except ValueError as error:
        if "confirm_run_unsafe_code" not in str(error):
            raise
        raise Refusal(runs_code(settings["tasks"])) from None


def _merged(name: str, members: dict[str, Any], results: Any) -> TaskSamples:
    """One task's result; a group's subtasks as one task whose documents come in clusters."""
    samples = {member: results["samples"][member] for member in members if member in results["samples"]}
    metrics = {member: _metrics(found[0], members[member]) for member, found in samples.items()}
    if len({metrics[member][0] for member in samples}) > 1:
        raise Refusal(f"task {name}: its subtasks do not share one metric ({metrics}); name the subtasks instead")
    first_filter = {member: found[0]["filter"] for member, found in samples.items()}
    return {
        "version": {member: results["versions"][member] for member in samples},
        "shots": {member: results["n-shot"][member] for member in samples},
        "metrics": next(iter(metrics.values()), []),
        "samples": [
            _sample_result(sample, metrics[member], member if len(members) > 1 else None)
            for member, found in samples.items()
            for sample in found
            if sample["filter"] == first_filter[member]
        ],
    }


def _metrics(sample: dict[str, Any], task: Any) -> list[str]:
    """The metrics that give every document a number to be paired, the task's main one first."""
    unpaired = unpaired_metrics(task)
    numbers = [metric for metric in sample["metrics"] if isinstance(sample[metric], bool | int | float | np.number)]
    return [metric for metric in numbers if metric not in unpaired]


def _sample_result(sample: dict[str, Any], metrics: list[str], cluster: str | None) -> Sample:
    return {
        "doc_hash": sample["doc_hash"],
        "place": sample["doc_id"],
        "cluster": cluster,
        "scores": [float(sample[metric]) for metric in metrics],
        "prompt": str(sample["arguments"][0][0])[-LONGEST_PROMPT:],
        "answer": str(sample["filtered_resps"][0]),
    }


def _tokenizer_digest(model: Any) -> str:
    """Of everything that turns a document into tokens: vocabulary, rules and chat template."""
    tokenizer = model.tokenizer
    parts = [
        json.dumps(tokenizer.get_vocab(), sort_keys=True),
        str(tokenizer.chat_template),
        json.dumps(tokenizer.special_tokens_map, default=str),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def library_versions(backend: str) -> dict[str, str]:
    """The versions that may change a score."""
    return {name: version(name) for name in LIBRARIES[backend]}


def main() -> None:
    end_with_parent()
    with shown_once():
        request = Request.model_validate_json(Path(sys.argv[1]).read_text())
        write_json(Path(sys.argv[2]), run_lm_eval(request))


if __name__ == "__main__":
    main()
