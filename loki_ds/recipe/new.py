"""A recipe for whoever has none: four answers, and every line says what it is for."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from loki_ds.recipe.shipped import resolve_file

BEGIN = 1 << 16  # characters of a file in which its first row is looked for
BATCH = 4  # examples of one device
STEPS = 150  # fewer teach nothing at a full training's rate
LONGEST = 2_048  # tokens of a row
MANY = 2_000  # examples with which the smallest rate learns, too

TEXT = """\
# {data} on {model}: every parameter trains, and is pulled to the base.
#
#   loki-ds check {file}
#   loki-ds run {file}{gpus}

model:
  path: {model}  # a folder or a hub id
  dtype: {dtype}  # {why_dtype}

implant:
  mode: full  # peft: an adapter; rows, with selection: {{strategy: random}}: every other byte stays the base's
  fade: 0.88  # of a change that nothing asks for again 0.88 is gone at the end; 0 to see first what is learned
  # When not to do the new task, by counter-examples from chats with functions, passages or a system turn:
  # rehearse: {{prompts: {{boundary: 0.15}}}}

# For rehearsal, loki-ds rates and rows by their scores: prompts of what must stay (docs/tasks/own-protected-set.md).
# protected: {{prompts: my_prompts.jsonl}}

data:
  train: {data}  # chats, pairs or texts; several with weights
  # heldout: my_heldout.jsonl

training:  # any key of TRL's SFTConfig
  num_train_epochs: {epochs}{why_epochs}
  per_device_train_batch_size: {batch}
  learning_rate: {rate}  # rows and adapters take ten times as much; loki-ds rates compares some
  max_length: {length}  # longer rows are cut; loki-ds check says how many
  assistant_only_loss: {only_assistant}  # of chats: learn what the assistant says
  save_strategy: epoch  # checkpoints; without them a killed training starts anew
  save_total_limit: 1

deepspeed: {deepspeed}  # {why_deepspeed}

retention:
  abilities: {keep}  # what must stay: a suite ({suites}), or {{tasks: [...]}}
  include_path: eval/tasks  # or of your own lm-eval tasks: a folder, or [eval/tasks, my_tasks]
  # What is learned, as a task: docs/tasks/own-data.md makes one of held-out chats.
  # new_task: {{tasks: [my_calls], apply_chat_template: true}}
"""


class Wanted(NamedTuple):
    """The four answers. keep: a suite's name; gpus: 0 for a processor."""

    model: str
    data: str
    keep: str
    gpus: int


def recipe_text(wanted: Wanted, file: Path) -> str:
    """The recipe's YAML, with its comments."""
    stored = _stored_dtype(Path(wanted.model))
    on_processor = wanted.gpus == 0
    dtype = "float32" if on_processor else stored or "bfloat16"
    several = wanted.gpus > 1
    gpus = f" --gpus {wanted.gpus}"
    rows = _rows(Path(wanted.data))
    epochs = _epochs(rows, BATCH * max(1, wanted.gpus))
    return TEXT.format(
        model=_as_yaml(wanted.model),
        data=_as_yaml(wanted.data),
        keep=wanted.keep,
        gpus=gpus,
        file=file,
        dtype=dtype,
        why_dtype="exact on a processor" if on_processor else "the checkpoint's own" if stored else "of most models",
        epochs=epochs,
        why_epochs=f"  # of {rows:,} rows; watch the held-out loss" if epochs > 2 else "",
        batch=BATCH,
        rate="1e-5" if rows is None or rows >= MANY else "5e-5",
        length=_room(Path(wanted.model)),
        only_assistant=str(_holds_chats(Path(wanted.data))).lower(),
        deepspeed="launch/zero3.json" if several else "launch/zero2.json",
        why_deepspeed="shards the model over the GPUs" if several else "one device; zero3.json shards over several",
        suites=", ".join(suites()),
    )


def _as_yaml(text: str) -> str:
    """A text as a value, in quotes where YAML would read something else."""
    return yaml.safe_dump({"x": text}, width=float("inf"), allow_unicode=True)[3:-1]


def suites() -> list[str]:
    """The names of those that travel with the package."""
    return sorted(file.stem for file in Path(resolve_file("eval/suites")).glob("*.yaml"))


def _stored_dtype(folder: Path) -> str | None:
    """Of a model's folder what its configuration says."""
    config = _configuration(folder)
    return config.get("dtype") or config.get("torch_dtype")


def _room(folder: Path) -> int:
    """Tokens of a row: those that the model was made for, where its folder says so, and enough."""
    return min(LONGEST, _configuration(folder).get("max_position_embeddings") or LONGEST)


def _configuration(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _rows(file: Path) -> int | None:
    """Of a file of lines that is here; None of any other."""
    if not file.is_file() or file.suffix != ".jsonl":
        return None
    with file.open("rb") as opened:
        return sum(1 for line in opened if line.strip())


def _epochs(rows: int | None, batch: int) -> int:
    """Two, or of few rows as many as make `STEPS` steps, twenty at most."""
    return 2 if not rows else min(20, max(2, math.ceil(STEPS * batch / rows)))


def _holds_chats(file: Path) -> bool:
    """By the first row, where the file is here and is JSON."""
    if not file.is_file() or file.suffix not in (".jsonl", ".json"):
        return True
    with file.open(encoding="utf-8", errors="replace") as opened:
        begin = opened.read(BEGIN).lstrip()
    first = begin.partition("\n")[0] if file.suffix == ".jsonl" else begin
    return not ('"prompt"' in first or '"text"' in first) or '"messages"' in first
