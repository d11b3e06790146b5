"""Held-out chats as an lm-eval task: does the model, asked as it was trained, call what they call?

Every turn of the assistant's is a document. Its prompt is what stands before it, and the functions,
by the model's own chat template. Right is an answer that makes the same calls in any order and in
any notation (`notations`), and none where the turn makes none.
"""

import json
from typing import Any, Literal, get_args

from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask

from loki_ds.data.layouts import Example, example_of
from loki_ds.data.messages import Message, NotUnderstood
from loki_ds.data.sources import place_of, rows_of
from loki_ds.judges.notations import parse_calls
from loki_ds.recipe.sections import SourceSection
from loki_ds.refusal import Refusal

Turns = Literal["all", "calls", "silent"]
NO_CALL = "[]"  # as a document expects it
Calls = list[tuple[str, dict[str, Any]]]  # names of functions, and their arguments


class HeldOutCalls(ConfigurableTask):
    """A task of the chats in `dataset_kwargs.path`, in any layout that trains.

    Raises:
        Refusal: it is asked without `apply_chat_template`.
    """

    BY_TEMPLATE = True

    def __init__(self, config: dict[str, Any]) -> None:
        own = {key: value for key, value in config.items() if key != "class"}
        super().__init__(config={**SETTINGS, **own})

    def fewshot_context(self, doc: dict[str, str], *_: Any, **named: Any) -> str:
        """The prompt, by the template of lm-eval's model."""
        template = named.get("chat_template")
        if template is None:
            raise Refusal(f"task {self.task_name} puts chats to the model: apply_chat_template must be true")
        model = getattr(template, "func", template).__self__
        return str(
            model.tokenizer.apply_chat_template(
                json.loads(doc["messages"]),
                tools=json.loads(doc["tools"]) or None,
                tokenize=False,
                add_generation_prompt=True,
                **model.chat_template_args,
            )
        )


def documents(path: str, turns: Turns = "all", **_: Any) -> DatasetDict:
    """Each turn of the assistant's that answers a user, as text.

    turns: all, those that call, or those that do not: two sides of a decision, two tasks of a file.

    Raises:
        Refusal: the file cannot be read or has no such turn, or a row is not understood or no chat.
    """
    if turns not in get_args(Turns):
        raise Refusal(f"{path}: dataset_kwargs.turns is {turns!r}, allowed are {', '.join(get_args(Turns))}")
    asked: list[dict[str, str]] = []
    source = SourceSection(path=path)
    for number, row in rows_of(source):
        try:
            example = example_of(row)
        except NotUnderstood as problem:
            raise Refusal(f"{place_of(source, number)} {problem}") from None
        if not example.is_chat:
            raise Refusal(f"{place_of(source, number)} is no chat, whose calls could be judged")
        asked += [_document(number, place, example) for place in _answers(example)]
    if turns != "all":
        asked = [document for document in asked if (document["expected"] != NO_CALL) is (turns == "calls")]
    if not asked:
        raise Refusal(f"{path}: no turn to ask of {turns}")
    return DatasetDict(test=Dataset.from_list(asked))


def _answers(example: Example) -> list[int]:
    """The places of what the assistant says to a user, of a pair in its completion."""
    roles = [message["role"] for message in example.messages]
    return [
        i for i, role in enumerate(roles) if role == "assistant" and "user" in roles[:i] and i >= example.learned_from
    ]


def _document(number: int, place: int, example: Example) -> dict[str, str]:
    calls = _calls(example.messages[place])
    return {
        "id": f"line {number}, turn {place + 1}",
        "messages": json.dumps(example.messages[:place]),
        "tools": json.dumps(example.tools),
        "expected": json.dumps(calls),
        "shown": _in_python(calls) if calls else "no call",
    }


def _calls(message: Message) -> Calls:
    """The calls that a turn makes; written as text they count, too (ToolACE's)."""
    if "tool_calls" in message:
        return [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]
    return [(call.function, call.arguments) for call in parse_calls(message["content"]) or []]


def _in_python(calls: Calls) -> str:
    """Calls as people read them."""
    each = [f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})" for name, given in calls]
    return f"[{', '.join(each)}]"


def judged(document: dict[str, str], results: list[str]) -> dict[str, int]:
    """Whether an answer makes exactly the expected calls."""
    left = [(name, arguments) for name, arguments in json.loads(document["expected"])]
    for call in parse_calls(results[0]) or []:
        if (call.function, call.arguments) not in left:
            return {"calls_match": 0}
        left.remove((call.function, call.arguments))
    return {"calls_match": int(not left)}


SETTINGS = {
    "custom_dataset": documents,
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{id}}",
    "doc_to_target": "{{shown}}",
    "process_results": judged,
    "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 512},
    "metric_list": [{"metric": "calls_match", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}
