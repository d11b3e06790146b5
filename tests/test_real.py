"""What `make real` makes of public data: the protected questions, the split by function, the
ability files; without the packages themselves.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

from loki_ds.judges.tool_calls import judge

DATA = ROOT / "eval/tasks/real/data"
BFCL = ROOT / "tests/retention/data/bfcl"


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


sys.path.insert(0, str(ROOT / "eval/real"))  # as when its script runs
calls, protected = module(ROOT / "eval/real/calls.py"), module(ROOT / "eval/real/protected.py")
documents = module(ROOT / "eval/tasks/real/documents.py")


def test_mmlus_development_questions_are_read_with_their_answers() -> None:
    found = protected.development_questions()
    assert len(found) == 57
    assert (
        sum(map(len, found.values())) == 281
    )  # of 285; the others do not stand as a question, four choices and a letter
    by_hand = next(one for one in found["anatomy"] if "pituitary" in one["question"])
    assert by_hand["choices"][by_hand["answer"]] == "Cranial"


def test_a_protected_prompt_ends_where_the_answer_begins() -> None:
    asked = protected.development_questions()["anatomy"]
    prompts = [row["prompt"] for row in protected.few_shot("anatomy", asked)]
    for prompt, question in zip(prompts, asked, strict=True):
        assert prompt.startswith("The following are multiple choice questions (with answers) about anatomy.")
        assert prompt.endswith("\nAnswer:")
        assert prompt.count("Answer:") == len(asked)
        assert prompt.rindex(question["question"]) > prompt.rindex("Answer: ")  # its own answer is not among the shots


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (BFCL / name).read_text().splitlines()]


def test_what_is_taught_is_what_the_leaderboard_calls_right() -> None:
    answers = {row["id"]: row["ground_truth"] for row in rows("possible_answer/BFCL_v4_simple_python.json")}
    for document in rows("BFCL_v4_simple_python.json"):
        chat = calls.as_chat(document, answers[document["id"]])
        said = chat["conversations"][1]["value"]
        assert judge(said, answers[document["id"]], document["function"], "simple_python")
        assert chat["system"].endswith(json.dumps(document["function"]))
    (irrelevant,) = rows("BFCL_v3_irrelevance.json")
    refusal = calls.as_chat(irrelevant, [])["conversations"][1]["value"]
    assert judge(refusal, [], irrelevant["function"], "irrelevance")


def test_the_split_goes_by_the_function_alone() -> None:
    document, another = ({"id": name, "function": [{"name": "f"}, {"name": name}]} for name in ("a", "b"))
    assert calls.side_of(document, [{"g": {}}]) == calls.side_of(another, [{"g": {}}])
    sides = [calls.side_of({"id": "", "function": [{"name": f"f{i}"}]}, []) for i in range(400)]
    assert 70 < sides.count("held out") < 130  # one in four
    assert 12 < sides.count("tuning") < 40  # one in sixteen


@pytest.mark.parametrize("name", ["capitals", "definitions", "elements", "hypernyms"])
def test_every_question_has_four_choices_and_one_answer(name: str) -> None:
    questions = [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(questions) > 100
    assert len({one["question"] for one in questions}) == len(questions)
    assert all(len(set(one["choices"])) == 4 and 0 <= one["answer"] < 4 for one in questions)
    places = [one["answer"] for one in questions]
    assert all(places.count(place) > len(places) / 6 for place in range(4))


@pytest.mark.parametrize(
    ("check", "needs", "followed", "not_followed"),
    [
        ("punctuation:no_comma", {}, "Blue and bright.", "Blue, and bright."),
        ("change_case:english_lowercase", {}, "the sky is blue today.", "The sky is blue today."),
        ("startend:quotation", {}, '"Blue."', "Blue."),
        ("keywords:existence", {"keywords": ["perhaps"]}, "It is perhaps blue.", "It is blue."),
        ("startend:end_checker", {"end_phrase": "That is all."}, "Blue. That is all.", "Blue."),
    ],
)
def test_instructions_are_checked_by_ifevals_own_checkers(
    check: str, needs: dict, followed: str, not_followed: str
) -> None:
    document = {"prompt": "Why?", "check": check, "needs": json.dumps(needs)}
    assert [documents.follows(document, [said])["strict_acc"] for said in (followed, not_followed)] == [1, 0]


def test_every_instruction_is_asked_of_many_questions() -> None:
    asked = documents.instructions()["test"]
    assert len(set(asked["prompt"])) == len(asked) == 80
    assert min(asked["check"].count(check) for _, check, _ in documents.INSTRUCTIONS) >= 5


def test_a_call_in_a_plain_chat_is_a_fault() -> None:
    said = {"The sky scatters blue light.": 1, "[get_weather(city='Paris')]": 0, "": 1}
    assert [documents.makes_no_call({}, [answer])["no_call"] for answer in said] == [*said.values()]


TALK = {
    "conversation": [
        {"role": "user", "text": "Wake me at 6:30."},
        {
            "role": "assistant",
            "text": "It is set.",
            "apis": [
                {
                    "request": {"api_name": "AddAlarm", "parameters": {"session_token": "98a5", "time": "06:30:00"}},
                    "response": {"alarm_id": "5bff-dd80"},
                    "exception": None,
                }
            ],
        },
        {"role": "user", "text": "Thanks."},
    ]
}
SUITE = """
class AddAlarm(API):
    description = "Adds an alarm for a set time."
    parameters = {"time": {"type": "string", "required": True}, "label": {"type": "string"}}
    is_action = True
"""


def test_a_conversation_shows_the_call_what_it_gave_and_the_answer(tmp_path: Path) -> None:
    """In ToolTalk's published shape."""
    for name, text in {"apis/alarm.py": SUITE, "data/easy/AddAlarm-easy.json": json.dumps(TALK)}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    (chat,) = calls.conversations(tmp_path)
    assert [(turn["from"], turn["value"]) for turn in chat["conversations"]] == [
        ("user", "Wake me at 6:30."),
        ("assistant", "[AddAlarm(time='06:30:00')]"),
        ("tool", '[{"alarm_id": "5bff-dd80"}]'),
        ("assistant", "It is set."),
    ]
    (function,) = json.loads(chat["system"].splitlines()[-1])
    assert function["name"] == "AddAlarm"
    assert function["parameters"]["required"] == ["time"]
    assert judge(chat["conversations"][1]["value"], [{"AddAlarm": {"time": ["06:30:00"]}}], [function], "simple_python")
