"""The new task: tool calls in ToolACE's form, from BFCL's documents and ToolTalk's conversations.

BFCL's documents are split by the function that is called: most are trained on, some are for tuning,
some are held out. ToolTalk's conversations (Farn and Shin, 2023) show what follows a call: its
result, and an answer.
"""

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from rows import Row, rows, write
from transformers import AutoTokenizer

ROOT = Path(__file__).parents[2]
CATEGORIES = ("simple_python", "multiple", "parallel", "live_simple", "irrelevance")
LONGEST = 448  # tokens of a prompt
LONGEST_TALK = 640  # tokens of a conversation with its results
REFUSAL = "None of the given functions can be used for this."
# Of sixteen functions four are held out and one is for tuning, by their names' digests.
SIDES = ("held out",) * 4 + ("tuning",) + ("train",) * 11


def make_calls(packages: Path, folder: Path) -> None:
    """BFCL's documents by function, on three sides."""
    if (folder / "bfcl").exists():
        return
    data, tokenizer = packages / "bfcl_eval/data", AutoTokenizer.from_pretrained(folder / "model")
    talks = (chat for chat in conversations(packages / "tooltalk") if tokens_of(chat, tokenizer) <= LONGEST_TALK)
    chats: dict[str, list[Row]] = {"train": list(talks), "tuning": []}
    for category in CATEGORIES:
        file = f"BFCL_v4_{category}.json"
        answers = {} if category == "irrelevance" else {row["id"]: row for row in rows(data / "possible_answer" / file)}
        kept = []
        for document in rows(data / file):
            expected = answers.get(document["id"], {}).get("ground_truth", [])
            chat = as_chat(document, expected)
            if tokens_of(chat, tokenizer, turns=1) > LONGEST:
                continue
            side = side_of(document, expected)
            if side == "held out":
                kept.append(document)
            else:
                chats[side].append(chat)
        write(folder / "bfcl.tmp" / file, kept)
        if answers:
            write(folder / "bfcl.tmp/possible_answer" / file, [answers[document["id"]] for document in kept])
    for side, of_side in chats.items():
        write(folder / f"{side}.jsonl", of_side)
    (folder / "bfcl.tmp").rename(folder / "bfcl")


def make_heldout(folder: Path) -> None:
    """The held-out documents with a call, each with the calls that are right."""
    if (folder / "heldout.jsonl").exists():
        return
    made = []
    for category in CATEGORIES:
        answers = folder / f"bfcl/possible_answer/BFCL_v4_{category}.json"
        if answers.exists():
            right = {row["id"]: row["ground_truth"] for row in rows(answers)}
            chats = [as_chat(row, right[row["id"]]) for row in rows(folder / f"bfcl/BFCL_v4_{category}.json")]
            made += [
                {"system": chat["system"], "question": asked["value"], "answer": answer["value"]}
                for chat in chats
                for asked, answer in [chat["conversations"]]
            ]
    write(folder / "heldout.jsonl", made)


def as_chat(document: Row, expected: list[Row]) -> Row:
    """In ToolACE's form, with the leaderboard's own instruction."""
    question = "\n".join(message["content"] for message in document["question"][0])
    answer = f"[{', '.join(call(one) for one in expected)}]" if expected else REFUSAL
    turns = [{"from": "user", "value": question}, {"from": "assistant", "value": answer}]
    return {"system": instruction() + json.dumps(document["function"]), "conversations": turns}


def call(expected: Row) -> str:
    ((name, allowed),) = expected.items()
    given = {
        key: next((one for one in values if one != ""), None) for key, values in allowed.items() if "" not in values
    }
    return f"{name}({', '.join(f'{key}={first_allowed(value)!r}' for key, value in given.items())})"


def first_allowed(value: Any) -> Any:
    """Within a dictionary every key lists what it may be."""
    if isinstance(value, dict):
        return {key: first_allowed(some[0] if isinstance(some, list) and some else some) for key, some in value.items()}
    return [first_allowed(one) if isinstance(one, dict) else one for one in value] if isinstance(value, list) else value


def side_of(document: Row, expected: list[Row]) -> str:
    """By the name of the function that is called, or else shown first."""
    name = (
        next(iter(expected[0]))
        if expected
        else document["function"][0]["name"]
        if document["function"]
        else document["id"]
    )
    return SIDES[int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(SIDES)]


def tokens_of(chat: Row, tokenizer: Any, turns: int | None = None) -> int:
    said = (turn["value"] for turn in chat["conversations"][:turns])
    return len(tokenizer(chat["system"] + "".join(said))["input_ids"])


@cache
def instruction() -> str:
    """What `eval/tasks/bfcl` says to a model before the functions."""
    spec = importlib.util.spec_from_file_location("documents", ROOT / "eval/tasks/bfcl/documents.py")
    assert spec is not None
    assert spec.loader is not None
    documents = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(documents)
    return str(documents.SYSTEM)


def conversations(tooltalk: Path) -> Iterator[Row]:
    """ToolTalk's, in ToolACE's form: the functions of the suites in use, and after each call what
    it gave and the answer. The user's last word has no answer and is left out, as are talks in
    which a call fails.
    """
    suites = {file.stem: list(functions_of(file)) for file in sorted((tooltalk / "apis").glob("*.py"))}
    for file in sorted(tooltalk.glob("data/*/*.json")):
        talk = json.loads(file.read_text(encoding="utf-8"))
        called = [one for turn in talk.get("conversation", []) for one in turn.get("apis", [])]
        if not called or any(one["exception"] for one in called):
            continue
        functions = [function for suite in suites_of(called, suites) for function in suites[suite]]
        turns = [said for turn in talk["conversation"] for said in as_turns(turn)]
        while turns[-1]["from"] == "user":
            turns.pop()
        yield {"system": instruction() + json.dumps(functions), "conversations": turns}


def suites_of(called: list[Row], suites: dict[str, list[Row]]) -> list[str]:
    names = {one["request"]["api_name"] for one in called}
    return [suite for suite, functions in suites.items() if names & {function["name"] for function in functions}]


def as_turns(turn: Row) -> Iterator[Row]:
    if turn.get("apis"):
        requests = [one["request"] for one in turn["apis"]]
        yield {"from": "assistant", "value": f"[{', '.join(request_call(one) for one in requests)}]"}
        yield {"from": "tool", "value": json.dumps([one["response"] for one in turn["apis"]])}
    yield {"from": turn["role"], "value": turn["text"]}


def request_call(request: Row) -> str:
    given = {key: value for key, value in request["parameters"].items() if key != "session_token"}  # the executor's
    return f"{request['api_name']}({', '.join(f'{key}={value!r}' for key, value in given.items())})"


def functions_of(file: Path) -> Iterator[Row]:
    """A suite's functions as BFCL writes them, from the classes' own attributes."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        stated = {one.targets[0].id: one.value for one in node.body if isinstance(one, ast.Assign)}  # type: ignore[attr-defined]
        if {"description", "parameters"} <= stated.keys():
            parameters = ast.literal_eval(stated["parameters"])
            required = [name for name, parameter in parameters.items() if parameter.pop("required", False)]
            schema = {"type": "dict", "properties": parameters, "required": required}
            description = ast.literal_eval(stated["description"])
            yield {"name": node.name, "description": description, "parameters": schema}
