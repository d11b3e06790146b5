"""Arms are joined by document; whatever does not match is refused with the task's name."""

import pytest
from paired import metric

from loki_ds.refusal import Refusal
from loki_ds.retention.pairing import pair

MADE_BY = {"tokenizer": "abc", "libraries": {"lm_eval": "0.4"}}


def arm(samples: list[tuple[str, float]], asked: str = "ask {}", **changes: object) -> dict:
    rows = [
        {
            **{"doc_hash": doc, "scores": [score], "prompt": doc, "answer": f"{doc}-{score}", "gold": doc},
            **{"cluster": None, "prompt_hash": asked.format(doc)},
        }
        for doc, score in samples
    ]
    return {
        **MADE_BY,
        "tasks": {
            "sums": {"version": 1.0, "metrics": [metric()], "shots": 0, "by_size": True, "samples": rows, **changes}
        },
    }


def test_joined_by_document_and_not_by_place() -> None:
    (task,) = pair(arm([("a", 1), ("b", 0)]), arm([("b", 1), ("a", 0)]))
    assert [(p.doc_hash, p.base, p.implanted) for p in task.pairs] == [("a", 1, 0), ("b", 0, 1)]
    assert task.pairs[0].implanted_answer == "a-0"


def test_a_document_that_stands_twice_is_paired_twice() -> None:
    (task,) = pair(arm([("a", 1), ("a", 1)]), arm([("a", 0), ("a", 1)]))
    assert [(p.base, p.implanted) for p in task.pairs] == [(1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("implanted", "says"),
    [
        (arm([("a", 1)]), "task sums: 1 documents were seen by one arm only"),
        (arm([("a", 1), ("c", 0)]), "task sums: 2 documents"),
        (arm([("a", 1), ("b", 0)], shots=5), "task sums: shots is 0 on the base and 5"),
        (arm([("a", 1), ("b", 0)], version=2.0), r"task sums: version is 1.0 on the base and 2.0"),
        (arm([("a", 1), ("b", 0)], asked="say {}"), "task sums: 2 documents were asked in other words on the base"),
        ({**MADE_BY, "tasks": {}}, "only one of them has sums"),
        ({**arm([("a", 1), ("b", 0)]), "tokenizer": "xyz"}, "tasks sums: tokenizer differ: abc on the base and xyz"),
        ({**arm([("a", 1), ("b", 0)]), "libraries": {"lm_eval": "0.5"}}, "tasks sums: libraries differ"),
    ],
)
def test_mismatches_are_refused(implanted: dict, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        pair(arm([("a", 1), ("b", 0)]), implanted)


def test_models_of_two_tokenizers_are_asked_in_their_own_words() -> None:
    (task,) = pair(arm([("a", 1)]), {**arm([("a", 0)], asked="say {}"), "tokenizer": "xyz"}, one_tokenizer=False)
    assert [(p.base, p.implanted) for p in task.pairs] == [(1, 0)]
