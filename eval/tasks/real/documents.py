"""Instructions that a program can check, and plain chats: our own questions to a chat model."""

import json
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.tasks.ifeval.utils import process_results as by_ifeval

from loki_ds.judges.notations import parse_calls

QUESTIONS = (
    "Why is the sky blue?",
    "How do I boil an egg?",
    "What is a good way to learn a language?",
    "Tell me about the moon.",
    "What should I pack for a day at the beach?",
    "How does a bicycle stay upright?",
    "Describe a forest in autumn.",
    "What makes a good friend?",
    "How do plants grow?",
    "Give me an idea for a birthday present.",
    "What is the use of a library?",
    "How can I sleep better?",
    "Describe your favourite season.",
    "Why do people like music?",
    "How is bread made?",
    "What can I do on a rainy day?",
    "Why should I drink water?",
    "How do birds fly?",
    "Tell me a short story about a dog.",
    "What is a map for?",
)
# What is asked for, lm-eval's checker and what it needs to know.
INSTRUCTIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("Use no commas in your answer.", "punctuation:no_comma", {}),
    ("Answer in lower case letters only.", "change_case:english_lowercase", {}),
    ("Put your whole answer in double quotation marks.", "startend:quotation", {}),
    (
        "Answer with exactly 3 bullet points, each starting with *.",
        "detectable_format:number_bullet_lists",
        {"num_bullets": 3},
    ),
    ('Use the word "perhaps" in your answer.', "keywords:existence", {"keywords": ["perhaps"]}),
    ('Do not use the word "the".', "keywords:forbidden_words", {"forbidden_words": ["the"]}),
    ('End your answer with the words "That is all."', "startend:end_checker", {"end_phrase": "That is all."}),
    ("Give your answer a title in double angular brackets, such as <<title>>.", "detectable_format:title", {}),
)


def instructions(**_: Any) -> DatasetDict:
    """Every question with four of the instructions, in turn."""
    made = []
    for place, question in enumerate(QUESTIONS):
        for turn in range(4):
            asked, check, needs = INSTRUCTIONS[(place + 2 * turn + turn // 2) % len(INSTRUCTIONS)]
            made.append({"prompt": f"{question} {asked}", "check": check, "needs": json.dumps(needs)})
    return DatasetDict(test=Dataset.from_list(made))


def chats(**_: Any) -> DatasetDict:
    """The questions alone, and as people ask who want something done."""
    wishes = ("Please help me: {}", "I was wondering. {} Answer in a sentence or two.")
    prompts = [*QUESTIONS, *(wish.format(question) for wish in wishes for question in QUESTIONS)]
    return DatasetDict(test=Dataset.from_list([{"prompt": prompt} for prompt in prompts]))


def follows(document: dict[str, str], results: list[str]) -> dict[str, int]:
    asked = {
        "key": 0,
        "instruction_id_list": [document["check"]],
        "prompt": document["prompt"],
        "kwargs": [json.loads(document["needs"])],
    }
    return {"strict_acc": int(by_ifeval(asked, results)["prompt_level_strict_acc"])}


def makes_no_call(document: dict[str, str], results: list[str]) -> dict[str, int]:
    return {"no_call": int(not parse_calls(results[0]))}
