"""What is protected: MMLU's development questions, which lm-eval carries for its shots."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from rows import Row, write

QUESTION = re.compile(r"^(.*?)\s*\(A\)\s*(.*?)\s\(B\)\s*(.*?)\s\(C\)\s*(.*?)\s\(D\)\s*(.*)$", re.DOTALL)


def make_protected(folder: Path) -> None:
    """Each question after the others of its subject, with their answers; it ends where the answer
    begins. Beside it the questions by their choices.
    """
    if (folder / "protected.jsonl").exists():
        return
    by_subject = sorted(development_questions().items())
    questions = [question for _, asked in by_subject for question in asked]
    write(folder / "mmlu.jsonl", [{**one, "question": f"Question: {one['question']}\nAnswer:"} for one in questions])
    write(folder / "protected.jsonl", [prompt for subject, asked in by_subject for prompt in few_shot(subject, asked)])


def development_questions() -> dict[str, list[Row]]:
    """By subject: question, choices, place of the right one; lm-eval has them for its shots."""
    place = importlib.util.find_spec("lm_eval")
    assert place is not None
    assert place.origin is not None
    found: dict[str, list[Row]] = {}
    for file in sorted(Path(place.origin).parent.glob("tasks/mmlu/flan_cot_fewshot/mmlu_*.yaml")):
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        for sample in config["fewshot_config"]["samples"]:
            asked, right = (
                QUESTION.match(sample["question"].strip()),
                re.findall(r"answer is \(([A-D])\)", sample["target"]),
            )
            if asked and right:
                stem, *choices = (" ".join(part.split()) for part in asked.groups())
                row = {"question": stem, "choices": choices, "answer": "ABCD".index(right[-1])}
                found.setdefault(config["dataset_name"], []).append(row)
    return found


def few_shot(subject: str, asked: list[Row]) -> Iterator[Row]:
    """As lm-eval's MMLU asks: letters before the choices, the letter after `Answer:`."""
    about = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    written = [
        f"{row['question']}\n"
        + "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
        for row in asked
    ]
    for place, question in enumerate(written):
        others = (i for i in range(len(asked)) if i != place)
        shots = "".join(f"{written[i]}\nAnswer: {'ABCD'[asked[i]['answer']]}\n\n" for i in others)
        yield {"subject": subject, "prompt": f"{about}{shots}{question}\nAnswer:"}
