"""Judge a reranker on data in BEIR's format by nDCG, MAP and MRR from `ir_measures`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import ir_measures
import numpy as np
from datasets import load_dataset

from loki_ds.disk.text import json_lines, lines_of
from loki_ds.refusal import Refusal

HEADERS = ("query-id", "query_id", "qid")
MEASURES = {"ndcg@10": ir_measures.nDCG @ 10, "map": ir_measures.AP, "mrr": ir_measures.RR}


class Beir(NamedTuple):
    """A data set: passages and queries by id, and by query the relevance of judged passages."""

    corpus: dict[str, str]
    queries: dict[str, str]
    judged: dict[str, dict[str, int]]


def load_beir(source: str, split: str = "test") -> Beir:
    """A folder of `corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`, or a hub id: `BeIR/scifact`.

    Raises:
        Refusal: a judgement that cannot be read, or is of a query or passage that is not there.
    """
    folder = Path(source)
    if folder.is_dir():
        corpus, queries = (
            [row for _, row in json_lines(folder / f"{name}.jsonl", name)] for name in ("corpus", "queries")
        )
        judgements: Any = _judgements(folder / "qrels" / f"{split}.tsv")
    else:
        corpus, queries = load_dataset(source, "corpus")["corpus"], load_dataset(source, "queries")["queries"]
        judgements = [
            (row["query-id"], row["corpus-id"], row["score"]) for row in load_dataset(f"{source}-qrels")[split]
        ]
    judged: dict[str, dict[str, int]] = {}
    for query, passage, relevance in judgements:
        judged.setdefault(str(query), {})[str(passage)] = int(relevance)
    data = Beir(
        {str(row["_id"]): _passage(row) for row in corpus}, {str(row["_id"]): row["text"] for row in queries}, judged
    )
    _check_there(source, data)
    return data


def _judgements(file: Path) -> list[tuple[str, str, int]]:
    """BEIR's judgements (`query-id corpus-id score` under a header) or TREC's (`query 0 passage
    score`, without one): query, passage and relevance of each line.
    """
    judgements = []
    for i, (number, line) in enumerate(lines_of(file, "judgements")):
        columns = line.split("\t") if "\t" in line else line.split()
        if len(columns) == 4:
            del columns[1]
        if i == 0 and len(columns) == 3 and columns[0] in HEADERS:
            continue
        if len(columns) != 3 or not _is_whole(columns[2]):
            raise Refusal(f"{file}: line {number} is {line!r}, allowed are a query, a passage and a whole number")
        judgements.append((columns[0], columns[1], int(float(columns[2]))))
    return judgements


def _is_whole(text: str) -> bool:
    try:
        return float(text).is_integer()
    except ValueError:
        return False


def _check_there(source: str, data: Beir) -> None:
    for query, relevance in data.judged.items():
        if query not in data.queries:
            raise Refusal(f"{source}: the judgements name the query {query!r}, which is not among the queries")
        if gone := sorted(relevance.keys() - data.corpus.keys()):
            raise Refusal(f"{source}: the judgements name the passage {gone[0]!r}, which is not in the corpus")


def candidates(data: Beir, run: str | None, depth: int, seed: int) -> dict[str, list[str]]:
    """For each judged query the passages to rank: the first `depth` of a TREC run file (a first
    stage's, like BM25's), or else the judged passages and others drawn by the seed up to `depth`.

    Raises:
        Refusal: the run file lacks a query, or ranks a passage that is not there.
    """
    if run is not None:
        listed = sorted(ir_measures.read_trec_run(run), key=lambda row: -row.score)
        ranked = {query: [row.doc_id for row in listed if row.query_id == query][:depth] for query in data.judged}
        for query, passages in ranked.items():
            if not passages:
                raise Refusal(f"{run}: it ranks nothing for the query {query!r}, which is judged")
            if gone := [passage for passage in passages if passage not in data.corpus]:
                raise Refusal(f"{run}: it ranks the passage {gone[0]!r}, which is not in the corpus")
        return ranked
    by_query = {}
    for query, relevance in data.judged.items():
        others = sorted(data.corpus.keys() - relevance.keys())
        drawn = Random(f"{seed}-{query}").sample(others, min(len(others), max(0, depth - len(relevance))))
        by_query[query] = sorted([*relevance, *drawn])
    return by_query


def measure(relevance: Mapping[str, int], scores: Mapping[str, float]) -> dict[str, float]:
    """nDCG@10, average precision and reciprocal rank of a query; `ir_measures` breaks ties."""
    measured = ir_measures.calc_aggregate(MEASURES.values(), {"q": dict(relevance)}, {"q": dict(scores)})
    return {name: float(measured[one]) for name, one in MEASURES.items()}


def expected_score(log_likelihoods: Sequence[float]) -> float:
    """The mean of labels 1, 2, ... under the model's probabilities, as the LB Reranker is read."""
    probabilities = np.exp(np.array(log_likelihoods) - np.max(log_likelihoods))
    return float((probabilities * np.arange(1, len(probabilities) + 1)).sum() / probabilities.sum())


def _passage(row: Mapping[str, Any]) -> str:
    return f"{row['title']}\n{row['text']}" if row.get("title") else row["text"]
