"""One arm of the paired evaluation, or a share of its documents: one model through lm-eval, in a
process of its own.

`python -m loki_ds.retention.arm REQUEST.json RESULT.json`, started by `evaluation`. Knows lm-eval;
knows nothing of the other arm.
"""

import hashlib
import json
import logging
import math
import os
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import AutoConfig, AutoModelForImageTextToText

from loki_ds.launcher import end_with_parent
from loki_ds.model_class import is_wrapper_alone
from loki_ds.recipe import TaskGroup
from loki_ds.refusal import Refusal, shown_once
from loki_ds.retention.blocks import Places, until_decided
from loki_ds.retention.parcels import ArmResult, Request, Sample, TaskSamples
from loki_ds.run_folder import write_json
from loki_ds.task_metrics import Metric, choices_of, gold_choices, likelihood
from loki_ds.tasks import TaskFound, task_manager

LIBRARIES = {"hf": ("lm_eval", "transformers", "torch"), "vllm": ("lm_eval", "vllm", "transformers", "torch")}
LONGEST_PROMPT = 2000  # characters of a prompt that are kept for the report, from its end


def run_lm_eval(request: Request, folder: Path) -> ArmResult:
    """Evaluate this process' share of the documents of every group of tasks.

    folder: where processes that share documents leave word for each other.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = task_manager(request.tasks, request.include_path, "retention")
    model, (share, of) = _model(request), request.share
    done: dict[str, TaskSamples] = {}
    for number, group in enumerate(request.groups):
        tasks = manager.load(group.tasks)["tasks"]
        drawn = {name: _drawn(name, task, group.limit, request) for name, task in tasks.items()}
        asked = {name: draws_shots_by_document(task, request.seed) for name, task in tasks.items()}
        ask = partial(_ask, model, request, group, asked, manager)
        if request.stop is not None and number < request.stop.abilities:
            done |= until_decided(request, request.stop, group.tasks, drawn, ask, folder)
        else:
            done |= ask({name: places[share::of] for name, places in drawn.items()})
    return {"tasks": done, "tokenizer": _tokenizer_digest(model), "libraries": library_versions(request.backend)}


def _model(request: Request) -> Any:
    from lm_eval.api.registry import get_model

    settings = {
        "pretrained": request.model,
        **({"peft": request.adapter} if request.adapter else {}),
        "tokenizer": request.tokenizer,
        "dtype": request.dtype,
        "trust_remote_code": request.trust_remote_code,
    }
    if request.backend == "vllm":
        return get_model("vllm")(**settings, tensor_parallel_size=request.devices_per_model, batch_size="auto")
    spread = {"parallelize": True} if request.devices_per_model > 1 else {"device": request.device}
    if is_wrapper_alone(AutoConfig.from_pretrained(request.model, trust_remote_code=request.trust_remote_code)):
        return get_model("hf")(_loaded(request), tokenizer=request.tokenizer, batch_size=request.batch_size)
    return get_model("hf")(**settings, **spread, batch_size=request.batch_size)


def _loaded(request: Request) -> Any:
    """A wrapper of text and pictures, which lm-eval asks for its text when it is handed over."""
    model = AutoModelForImageTextToText.from_pretrained(
        request.model,
        dtype=request.dtype,
        trust_remote_code=request.trust_remote_code,
        device_map="auto" if request.devices_per_model > 1 else {"": request.device},
    )
    return PeftModel.from_pretrained(model, request.adapter) if request.adapter else model


def _drawn(name: str, task: Any, limit: int | None, request: Request) -> list[int]:
    """A task's documents: `limit` of them drawn by the seed, the same on both arms, and of those
    the half that is asked.
    """
    count = len(task.eval_docs)
    drawn = sorted(Random(f"{request.seed}-{name}").sample(range(count), min(limit or count, count)))
    halves = {None: drawn, "choosing": drawn[::2], "confirming": drawn[1::2]}
    return halves[request.half]


def draws_shots_by_document(task: Any, seed: int) -> Any:
    """The task, drawing each document's shots by the seed and the document alone.

    lm-eval draws from one stream over all documents, so that the shots of each would depend on how
    many processes share them.
    """
    stock = task.fewshot_context

    def fewshot_context(doc: Any, *given: Any, **named: Any) -> Any:
        task.set_fewshot_seed(f"{seed}-{json.dumps(doc, sort_keys=True, default=str)}")
        return stock(doc, *given, **named)

    task.fewshot_context = fewshot_context
    return task


def _ask(
    model: Any, request: Request, group: TaskGroup, tasks: dict[str, Any], manager: Any, places: Places
) -> dict[str, TaskSamples]:
    """Some documents of a group's tasks, by the names that were asked for; of none nothing."""
    chosen = {name: of_task for name, of_task in places.items() if of_task}
    if not chosen:
        return {}  # fewer documents than processes
    results = _evaluate(model, request, group, [tasks[name] for name in chosen], manager, chosen)
    return {found.name: _merged(found, tasks, results) for found in request.found if found.name in group.tasks}


def _evaluate(model: Any, request: Request, group: TaskGroup, tasks: list[Any], manager: Any, chosen: Places) -> Any:
    """lm-eval's own `simple_evaluate`, allowed to run model-written code only if the recipe says
    so.
    """
    from lm_eval import simple_evaluate

    if request.allow_code_execution:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    whole = group.limit is None and request.half is None and request.share[1] == 1 and request.stop is None
    return simple_evaluate(
        model,
        tasks=tasks,
        num_fewshot=group.num_fewshot,
        samples=None if whole else chosen,
        apply_chat_template=group.apply_chat_template,
        task_manager=manager,
        bootstrap_iters=0,
        confirm_run_unsafe_code=request.allow_code_execution,
    )


# --- its samples ----------------------------------------------------------------------------------


def _merged(found: TaskFound, tasks: dict[str, Any], results: Any) -> TaskSamples:
    """One task's result; a group's subtasks as one task whose documents come in clusters."""
    samples = {member: results["samples"][member] for member in found.documents if member in results["samples"]}
    return {
        "version": {member: results["versions"][member] for member in samples},
        "shots": {member: results["n-shot"][member] for member in samples},
        "metrics": found.metrics,
        "by_size": found.by_size,
        "samples": [
            _sample_result(found, member, tasks[member], by_filter)
            for member, of_member in samples.items()
            for by_filter in _by_document(of_member)
        ],
    }


def _by_document(samples: list[dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """lm-eval's samples of a task, one for every document and filter: those of a document by their
    filter.
    """
    documents: dict[int, dict[str, dict[str, Any]]] = {}
    for sample in samples:
        documents.setdefault(sample["doc_id"], {})[sample["filter"]] = sample
    return list(documents.values())


def _sample_result(found: TaskFound, member: str, task: Any, by_filter: dict[str, dict[str, Any]]) -> Sample:
    """A document's numbers, and in words what was asked, answered and right.

    Raises:
        Refusal: a number that is none, or no number of the main metric.
    """
    first = next(iter(by_filter.values()))
    scores = [_number(metric, found, task, by_filter) for metric in found.metrics]
    for metric, score in zip(found.metrics, scores, strict=True):
        if (score is None and metric == found.main) or (score is not None and not math.isfinite(score)):
            raise Refusal(
                f"task {member}: document {first['doc_id']} (SHA-256 {first['doc_hash'][:16]}) scores {score} in "
                f"{metric['name']}, which can be compared with nothing; the model's numbers may have overflowed "
                "(model.dtype), or leave the task out"
            )
    answer, gold = _in_words(task, first)
    return {
        "doc_hash": first["doc_hash"],
        "place": first["doc_id"],
        "cluster": member if len(found.documents) > 1 else None,
        "scores": scores,
        "prompt": str(first["arguments"][0][0])[-LONGEST_PROMPT:],
        "answer": answer,
        "gold": gold,
    }


def _number(metric: Metric, found: TaskFound, task: Any, by_filter: dict[str, dict[str, Any]]) -> float | None:
    """The document's, None where the task gives none.

    A metric may come under other names than its own, as HumanEval's `pass_at_k` does as `pass@1`:
    the first that nobody declared.
    """
    if not metric["filter"]:
        return likelihood(task, next(iter(by_filter.values())))
    sample, declared = by_filter[metric["filter"]], {one["metric"] for one in found.metrics}
    own_names = [metric["metric"], *(name for name in sample["metrics"] if name not in declared)]
    number = next((sample[name] for name in own_names if name in sample), None)
    return float(number) if isinstance(number, bool | int | float | np.number) else None


def _in_words(task: Any, sample: dict[str, Any]) -> tuple[str, str]:
    """What the model answered, and what is right."""
    gold = gold_choices(task, sample["doc"])
    if gold:
        choices = choices_of(task, sample["doc"])
        nats = [float(responses[0][0]) for responses in sample["resps"]][: len(choices)]
        return choices[int(np.argmax(nats))], " or ".join(choices[place] for place in gold)
    answered = sample["filtered_resps"][0]
    if task.OUTPUT_TYPE == "loglikelihood":
        answered = f"{sample['target']}, {'' if answered[1] else 'not '}the likeliest continuation"
    return str(answered), str(sample["target"])


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
        found = Path(sys.argv[2])
        write_json(found, run_lm_eval(request, found.parent))


if __name__ == "__main__":
    main()
