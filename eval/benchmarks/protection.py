"""What protects, and what it adds to a training step: pull, rehearsal, and the meter of drift.

    python eval/benchmarks/protection.py          # eval/reports/protection.*

The project's own trainer on one process without ZeRO, 8 layers and d_model 512. Each variant is a
process of its own; a step of each is taken in turn, so a slow moment of the machine hits all.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from shapes import SHAPES
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS
from trl import SFTConfig
from turns import READY, in_turns

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import ROOT, keep, listed, paragraph, table, where, write

from loki_ds.examples.rendering import Rendered
from loki_ds.implant_section import ImplantSection
from loki_ds.implanting.rehearsing import Rehearsed
from loki_ds.implanting.training import Examples, Method, Resume, train
from loki_ds.model.anatomy import decoder_layers
from loki_ds.rehearsal.answers import ask_base
from loki_ds.rehearsal.rows import as_dataset, mixed_in, rehearsed
from loki_ds.selection import select_random
from loki_ds.zero.model import Gatherer

SHAPE = "8 layers, d_model 512"
BATCH, TOKENS, SHARE, TEXTS = 4, 256, 0.05, 64
STEPS, WARM = 22, 2  # four rehearsed examples
VARIANTS: dict[str, dict[str, Any]] = {
    "rows": {},
    "rows, pull": {"pull": 1.0},
    "rows, rehearsal": {"rehearse": {"share": SHARE}},
    "rows, drift": {"rehearse": {"share": 0}},
    "full": {"mode": "full"},
    "full, pull": {"mode": "full", "pull": 1.0},
}


class InTurns(TrainerCallback):
    """Takes a step when asked, and says how long it was."""

    def __init__(self, asked: Connection) -> None:
        self.asked, self.started = asked, 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.asked.send(READY)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.asked.recv()
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.asked.send(time.perf_counter() - self.started)


def main() -> None:
    found = in_turns(take_steps, list(VARIANTS), STEPS)
    report({name: seconds[WARM:] for name, (seconds, _) in found.items()}, meter=found["rows, drift"][1])


def take_steps(name: str, asked: Connection) -> None:
    """A whole training of so many steps; the meter then says what a look at it takes."""
    torch.manual_seed(0)
    section = ImplantSection.model_validate({"mode": "rows", **VARIANTS[name]})
    model = AutoModelForCausalLM.from_config(SHAPES[SHAPE], dtype=torch.float32)
    layers, d_model = len(decoder_layers(model)), model.config.hidden_size
    positions = select_random(layers, d_model, 10, seed=0) if section.kind.confined else None
    examples = examples_of(section, model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-4,
            logging_steps=STEPS,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            disable_tqdm=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
        DEFAULT_CALLBACKS.append(InTurns(asked))  # type: ignore[arg-type]  # the Trainer takes an instance too
        trainer: Any = train(model, tokenizer, arguments, examples, Method(section, positions), Resume(None, {}))
        asked.recv()
        started = time.perf_counter()
        if examples.rehearsed:
            trainer.measure_drift(examples.rehearsed)
        asked.send(time.perf_counter() - started)


def examples_of(section: ImplantSection, model: Any) -> Examples:
    new = as_dataset([Rendered(ids, ids) for ids in drawn(BATCH * STEPS, model)])
    if section.rehearse is None:
        return Examples(new, None)
    texts = [ids[:-1] for ids in drawn(TEXTS, model)]
    answers = ask_base(model, texts, [list(range(i, i + 8)) for i in range(0, TEXTS, 8)], Gatherer(), 64)
    rows = rehearsed(texts, answers, "kl")
    measured = {"drift": as_dataset(rows)}
    if not section.rehearse.share:
        return Examples(new, None, Rehearsed(answers, measured, learnt=False))
    mixed = mixed_in(new, rows, section.rehearse.share, seed=0).select(range(BATCH * STEPS))
    return Examples(mixed, None, Rehearsed(answers, measured, learnt=True))


def drawn(count: int, model: Any) -> list[list[int]]:
    return torch.randint(0, model.config.vocab_size, (count, TOKENS)).tolist()


def report(seconds: dict[str, Sequence[float]], meter: float) -> None:
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    about = (
        f"`python eval/benchmarks/protection.py`: {SHAPE}, float32, {BATCH} x {TOKENS} tokens, AdamW, median of "
        f"{STEPS - WARM} steps through the trainer, in turns; {listed(where('torch', 'transformers', 'trl'))}. More: "
        f"median of a round's ratios. Rehearsal: {SHARE:.0%} of the examples. `rows` and `rows, drift` take the same "
        f"steps: what they differ by is chance. A look at the drift, on {TEXTS} texts of {TOKENS - 1} tokens, takes "
        f"{meter / medians['rows']:.1f} steps."
    )
    rows = []
    for name, each in seconds.items():
        plain = seconds[name.split(",")[0]]
        more = statistics.median(own / other for own, other in zip(each, plain, strict=True)) - 1
        rows.append([name, f"{1000 * medians[name]:.0f}", f"{100 * more:+.1f}%" if each is not plain else "-"])
    keep("protection", {"where": where("torch", "transformers", "trl"), "seconds": seconds, "meter": meter})
    write("protection", "What protects, a step", paragraph(about), table(["method", "step, ms", "more"], rows))
    print(table(["method", "step, ms", "more"], rows))


if __name__ == "__main__":
    main()
