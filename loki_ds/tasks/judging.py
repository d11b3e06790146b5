"""A task's own code, tried on documents before a model is asked: the right answer goes through its
filters and its metrics, as a model's will.
"""

from typing import Any

from lm_eval.api.instance import Instance
from transformers import GenerationConfig

from loki_ds.refusal import Refusal, did_you_mean, short
from loki_ds.tasks.metrics import Metric, gold_choices, is_judged_by_lm_eval, number_of

OF_LM_EVAL = {"until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature"}  # read by itself
LIKELY, UNLIKELY = -1.0, -2.0  # nats of a choice that is right, and of one that is not


def try_judging(name: str, task: Any, document: Any, requests: list[Instance], metrics: list[Metric]) -> None:
    """Judge a document's right answer; the task's requests of it stand in lm-eval's form.

    Raises:
        Refusal: the task's code fails on it, or gives no number for its main metric.
    """
    _check_generation(name, requests[0])
    golds = gold_choices(task, document)
    if not golds and task.OUTPUT_TYPE == "multiple_choice" and is_judged_by_lm_eval(task):
        raise Refusal(f"task {name} has a document whose right answer is none of its choices: {_shown(task, document)}")
    try:
        for place, request in enumerate(requests):
            request.resps = [_answer(task, document, place in golds)]
        task._instances = requests
        task.apply_filters()
        main = metrics[0]
        answers = [request.filtered_resps[main["filter"] or next(iter(request.filtered_resps))] for request in requests]
        numbers = task.process_results(document, answers)
    except Exception as error:  # noqa: BLE001 (whatever a task's own code raises)
        said = f"{type(error).__name__}: {short(error, 200)}"
        raise Refusal(f"task {name} cannot judge a document ({_shown(task, document)}): {said}") from None
    if main["filter"] and number_of(main, metrics, numbers) is None:
        given = ", ".join(map(str, numbers)) if isinstance(numbers, dict) else short(numbers)
        raise Refusal(f"task {name} declares the metric {main['metric']}, and its own code gives {given or 'nothing'}")


def _answer(task: Any, document: Any, right: bool) -> Any:
    if task.OUTPUT_TYPE == "generate_until":
        return str(task.doc_to_target(document))
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return UNLIKELY
    return (LIKELY if right else UNLIKELY, right)


def _check_generation(name: str, request: Instance) -> None:
    """Hold what a task says of generating against what transformers knows."""
    settings = request.arguments[1] if len(request.arguments) > 1 else None
    if not isinstance(settings, dict):
        return
    until = settings.get("until", [])
    if not isinstance(until, str) and not (isinstance(until, list) and all(isinstance(stop, str) for stop in until)):
        raise Refusal(f"task {name}: generation_kwargs.until is {until!r}, allowed is a text or a list of texts")
    known = OF_LM_EVAL | GenerationConfig().to_dict().keys()
    if unknown := sorted(settings.keys() - known):
        near = did_you_mean(unknown[0], known)
        raise Refusal(f"task {name}: generation_kwargs.{unknown[0]} is nothing that transformers knows{near}")


def _shown(task: Any, document: Any) -> str:
    return short(document)
