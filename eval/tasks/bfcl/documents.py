"""BFCL v3 documents for lm-eval: the leaderboard's prompt, the question, and the calls that are
right; from a folder or the hub.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from huggingface_hub import hf_hub_download

from loki_ds.new_task.tool_calls import judge
from loki_ds.text_files import json_lines

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
    name = f"BFCL_v3_{category}.json"
    answers = (
        {}
        if category == "irrelevance"
        else {row["id"]: row["ground_truth"] for row in _rows(f"possible_answer/{name}", folder)}
    )
    return DatasetDict(
        test=Dataset.from_list([_document(row, answers.get(row["id"], [])) for row in _rows(name, folder)])
    )


def _document(row: dict[str, Any], expected: list[Any]) -> dict[str, str]:
    """Everything as text: the answers have another shape in every document."""
    question = "\n".join(message["content"] for message in row["question"][0])
    return {
        "id": row["id"],
        "system": SYSTEM + json.dumps(row["function"]),
        "question": question,
        "expected": json.dumps(expected),
    }


def _rows(file: str, folder: str | None) -> list[dict[str, Any]]:
    path = Path(folder, file) if folder else Path(hf_hub_download(HUB, file, repo_type="dataset"))
    return [row for _, row in json_lines(path, "documents")]


def process_results(document: dict[str, str], results: list[str]) -> dict[str, int]:
    return {"ast_match": int(judge(results[0], json.loads(document["expected"])))}


simple, multiple, parallel, irrelevance = (
    partial(read, category) for category in ("simple", "multiple", "parallel", "irrelevance")
)
