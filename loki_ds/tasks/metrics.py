"""What an lm-eval task measures of every document: its metrics as it declares them, and how likely
the model found the gold answer.

A metric can be paired when its aggregation is a mean over documents. Perplexities are no means, so
the log-likelihood behind them is taken instead.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from typing_extensions import TypedDict  # pydantic reads these on Python 3.11

Unit = Literal["score", "nats", "bits per byte"]
# A task's main metric says whether an answer was right, where it has one that does.
RIGHT_OR_WRONG = ("acc", "exact_match", "pass@", "pass_at", "ast_match", "em")
LIKELIHOOD = "gold answer"
TEXTS = "text"


class Metric(TypedDict):
    """A number for every document.

    name: as reports show it; metric, filter: lm-eval's (`filter` empty for a likelihood); unit: a
    mean `score`, `nats` of the gold answer's log-likelihood, or `bits per byte` of a text.
    """

    name: str
    metric: str
    filter: str
    unit: Unit
    higher_is_better: bool


def metrics_of(task: Any) -> tuple[list[Metric], dict[str, str]]:
    """An lm-eval task's metrics that give every document a number, the main one first; and by name
    why the others cannot be paired.
    """
    higher, unpaired = task.higher_is_better(), {}
    filters = filters_of(task)
    scores: list[Metric] = []
    for metric, aggregation in task.aggregation().items():
        if not _is_mean(aggregation):
            unpaired[metric] = "is no mean over documents"
            continue
        better = bool(higher.get(metric, True))  # as lm-eval takes what is not declared
        scores += [score(metric, name, filters, better) for name in filters]
    return in_order(scores, filters) + _likelihood(task), unpaired


def score(metric: str, by: str, filters: Sequence[str], better: bool) -> Metric:
    """A mean score by one of a task's filters, the first of which is not named."""
    shown = metric if by == filters[0] else f"{metric}, {by}"
    return _metric(shown, metric, by, "score", better)


def in_order(scores: Iterable[Metric], filters: Sequence[str]) -> list[Metric]:
    """The main one first: of the first filter, and one that says whether an answer was right."""
    return sorted(scores, key=lambda metric: (filters.index(metric["filter"]), not _says_right(metric)))


def filters_of(task: Any) -> list[str]:
    """The names of a task's filters, the first one first."""
    declared = getattr(task.config, "filter_list", None)
    return [one["name"] for one in declared] if declared else ["none"]


def _metric(name: str, metric: str, by: str, unit: Unit, higher: bool) -> Metric:
    return {"name": name, "metric": metric, "filter": by, "unit": unit, "higher_is_better": higher}


def _says_right(metric: Metric) -> bool:
    return metric["higher_is_better"] and metric["metric"].startswith(RIGHT_OR_WRONG)


def _is_mean(aggregation: Callable[[list[float]], float]) -> bool:
    """Tasks bring aggregations of their own, so it is tried and not looked up."""
    try:
        means = [aggregation([0.0, 1.0, 1.0, 1.0]), aggregation([0.25])] == [0.75, 0.25]
        return means and math.isnan(aggregation([math.nan, 1.0]))  # and leaves no document out
    except Exception:  # noqa: BLE001 (the task's own code, which may want pairs or lists)
        return False


# --- likelihoods ----------------------------------------------------------------------------------


def is_judged_by_lm_eval(task: Any) -> bool:
    """Whether a document's requests and its answers' judge are lm-eval's own."""
    from lm_eval.api.task import ConfigurableTask

    inherited = type(task).process_results is ConfigurableTask.process_results
    return inherited and not callable(task.config.process_results)


def _likelihood(task: Any) -> list[Metric]:
    if not is_judged_by_lm_eval(task):
        return []  # its requests may be anything
    if task.OUTPUT_TYPE == "multiple_choice" and not gold_choices(task, next(iter(task.eval_docs), None)):
        return []
    metric = likelihood_metric(task.OUTPUT_TYPE)
    return [metric] if metric else []


def likelihood_metric(output_type: str) -> Metric | None:
    """That of an lm-eval output type; None where a model writes."""
    if output_type == "loglikelihood_rolling":
        return _metric(f"bits per byte of the {TEXTS}", TEXTS, "", "bits per byte", False)
    if output_type in ("loglikelihood", "multiple_choice"):
        return _metric(f"log-likelihood of the {LIKELIHOOD}", LIKELIHOOD, "", "nats", True)
    return None


def likelihood(task: Any, sample: dict[str, Any]) -> float | None:
    """The likelihood in one of lm-eval's samples: nats of the gold answer (the likeliest of
    several), or bits per byte of the text; None where no gold answer is among the choices.
    """
    first = [responses[0] for responses in sample["resps"]]
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        nats = first[0][0] if isinstance(first[0], list | tuple) else first[0]
        return -float(nats) / math.log(2) / max(1, task.count_bytes(task.doc_to_target(sample["doc"])))
    nats_of = [float(response[0]) for response in first]
    if task.OUTPUT_TYPE == "loglikelihood":
        return nats_of[0]
    return max((nats_of[choice] for choice in gold_choices(task, sample["doc"])), default=None)


def number_of(metric: Metric, declared: list[Metric], numbers: Any) -> float | None:
    """A document's number by one of its task's metrics, None where the task gives none.

    It may come under a name that nobody declared, as HumanEval's `pass_at_k` does as `pass@1`.

    numbers: by name, as the task's `process_results` gives them.
    """
    if not isinstance(numbers, dict):
        return None
    names, begins = {each["metric"] for each in declared}, re.split(r"[^a-z]", metric["metric"], maxsplit=1)[0]
    others = (name for name in numbers if name not in names and str(name).startswith(begins))
    found = next((numbers[name] for name in (metric["metric"], *others) if name in numbers), None)
    return float(found) if isinstance(found, bool | int | float | np.number | np.bool_) else None


def gold_choices(task: Any, document: Any) -> list[int]:
    """Places of a multiple-choice document's right choices; none unless given in lm-eval's way."""
    if task.OUTPUT_TYPE != "multiple_choice" or document is None:
        return []
    try:
        gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
        choices = choices_of(task, document)
    except (AttributeError, KeyError, TypeError, ValueError):
        return []
    golds = gold if isinstance(gold, list) else [gold]
    places = [choices.index(choice) if choice in choices else choice for choice in golds]
    return [int(choice) for choice in places if isinstance(choice, int | np.integer) and 0 <= choice < len(choices)]


def choices_of(task: Any, document: Any) -> list[str]:
    """A multiple-choice document's choices, in words."""
    return [str(choice) for choice in task.doc_to_choice(document)]
