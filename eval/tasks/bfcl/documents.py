"""BFCL's documents for lm-eval, of v4 or v3: the leaderboard's prompt, the question, and the calls
that are right; from a folder or the hub.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from loki_ds.disk.text import json_lines
from loki_ds.judges.tool_calls import judge

HUB = "gorilla-llm/Berkeley-Function-Calling-Leaderboard"
# The leaderboard's own instruction to models that are prompted (bfcl_eval, DEFAULT_SYSTEM_PROMPT),
# for a single turn.
SYSTEM = """You are an expert in composing functions. You are given a question and a set of possible functions. Based on the question, \
you will need to make one or more function/tool calls to achieve the purpose.
If none of the functions can be used, point it out. If the given question lacks the parameters required by the function, also point it out.
You should only return the function calls in your response.

If you decide to invoke any of the function(s), you MUST put it in the format of \
[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]
You SHOULD NOT include any other text in the response.

Here is a list of functions in JSON format that you can invoke.
"""


def read(category: str, folder: str | None = None, **_: Any) -> DatasetDict:
    """All documents of a category, by its name in v3 (v4's `simple_python` is `simple`)."""
    file, rows = _first_there(category, folder)
    answers = {}
    if "relevance" not in category:
        answers = {row["id"]: row["ground_truth"] for row in _rows(_path(f"possible_answer/{file}", folder))}
    return DatasetDict(test=Dataset.from_list([_document(row, category, answers.get(row["id"], [])) for row in rows]))


def _document(row: dict[str, Any], category: str, expected: list[Any]) -> dict[str, str]:
    """Everything as text: the answers have another shape in every document. What a row says to the
    system stands after the leaderboard's own words.
    """
    system = [message["content"] for message in row["question"][0] if message["role"] == "system"]
    question = [message["content"] for message in row["question"][0] if message["role"] != "system"]
    return {
        "id": row["id"],
        "category": category,
        "system": "\n\n".join([SYSTEM + json.dumps(row["function"]), *system]),
        "question": "\n".join(question),
        "functions": json.dumps(row["function"]),
        "expected": json.dumps(expected),
    }


def _first_there(category: str, folder: str | None) -> tuple[str, list[dict[str, Any]]]:
    """The category's file and its rows: v4's name before v3's."""
    newer = "simple_python" if category == "simple" else category
    names = [f"BFCL_v4_{newer}.json", f"BFCL_v3_{category}.json"]
    for name in names:
        try:
            return name, _rows(_path(name, folder))
        except (FileNotFoundError, EntryNotFoundError):
            continue
    raise FileNotFoundError(f"{folder or HUB}: neither {names[0]} nor {names[1]} is there")


def _path(file: str, folder: str | None) -> Path:
    path = Path(folder, file) if folder else Path(hf_hub_download(HUB, file, repo_type="dataset"))
    if not path.exists():
        raise FileNotFoundError(path)
    return path


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in json_lines(path, "documents")]


def process_results(document: dict[str, str], results: list[str]) -> dict[str, int]:
    expected, functions = json.loads(document["expected"]), json.loads(document["functions"])
    return {"ast_match": int(judge(results[0], expected, functions, document["category"]))}


simple, multiple, parallel, parallel_multiple, irrelevance = (
    partial(read, category) for category in ("simple", "multiple", "parallel", "parallel_multiple", "irrelevance")
)
live_simple, live_multiple, live_parallel, live_parallel_multiple, live_irrelevance, live_relevance = (
    partial(read, f"live_{category}")
    for category in ("simple", "multiple", "parallel", "parallel_multiple", "irrelevance", "relevance")
)
