"""Reranking as an lm-eval task: one document is a query with its candidate passages, one score is
that query's nDCG, MAP or MRR.
"""

import json
from collections.abc import Callable
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from loki_ds.judges.ranking import MEASURES, candidates, expected_score, load_beir, measure

# The LB Reranker's own instruction and input (its model card).
SYSTEM = (
    "Given a query and a piece of text, output a score of 1-7 based on how related the query is to the text. "
    "1 means least related and 7 is most related."
)
LABELS = [str(label) for label in range(1, 8)]


def read(source: str, run: str | None = None, depth: int = 100, seed: int = 0, **_: Any) -> DatasetDict:
    data = load_beir(source)
    rows = [
        {
            "query": data.queries[query],
            "ids": listed,
            "passages": [data.corpus[passage] for passage in listed],
            "relevance": json.dumps(data.judged[query]),
        }
        for query, listed in sorted(candidates(data, run, depth, seed).items())
    ]
    return DatasetDict(test=Dataset.from_list(rows))


class Reranking(ConfigurableTask):
    """Every passage is asked for its label; the mean label orders the passages."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        own = {
            "custom_dataset": read,
            "test_split": "test",
            "output_type": "loglikelihood",
            "doc_to_text": "{{query}}",
            "doc_to_target": "{{relevance}}",
            "metadata": {"version": 1.0},
        }
        given = {key: value for key, value in (config or {}).items() if key != "class"}
        super().__init__(config={**own, **given})

    def construct_requests(
        self,
        doc: dict[str, Any],
        ctx: Any,
        chat_template: Callable | None = None,
        apply_chat_template: bool = False,
        **kwargs: Any,
    ) -> list[Instance]:
        contexts = [
            self._context(doc["query"], passage, chat_template if apply_chat_template else None)
            for passage in doc["passages"]
        ]
        pairs = [(context, label) for context in contexts for label in LABELS]
        return [
            Instance(request_type="loglikelihood", doc=doc, arguments=pair, idx=i, **kwargs)
            for i, pair in enumerate(pairs)
        ]

    def _context(self, query: str, passage: str, chat_template: Callable | None) -> str:
        asked = f"<<<Query>>>\n{query}\n\n<<<Context>>>\n{passage}"
        if chat_template is None:
            return f"{SYSTEM}\n\n{asked}\n\n"
        return chat_template([{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}])

    def process_results(self, doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
        likelihoods = [likelihood for likelihood, _ in results]
        asked = [likelihoods[i : i + len(LABELS)] for i in range(0, len(likelihoods), len(LABELS))]
        scores = {passage: expected_score(found) for passage, found in zip(doc["ids"], asked, strict=True)}
        return measure(json.loads(doc["relevance"]), scores)

    def aggregation(self) -> dict[str, Callable]:
        return dict.fromkeys(MEASURES, _mean)

    def higher_is_better(self) -> dict[str, bool]:
        return dict.fromkeys(MEASURES, True)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
