"""What the same likelihoods take lm-eval's own model of transformers, and ours.

    python eval/benchmarks/asking.py             # eval/reports/asking.*, minutes on an idle core

On SmolLM2-135M and its tasks (`eval/real/fetch.py build/real` first), one thread, the two in turn.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from loki_ds.recipe import RetentionSection
from loki_ds.retention.arm import evaluated
from loki_ds.retention.harness import LeanHFLM

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))

from one_base import request_of
from reporting import ROOT, keep, listed, paragraph, table, where, write

BASE, BATCH = ROOT / "build/real/model", 8
TASKS = {  # how many documents of each
    **{"real_capitals": 40, "real_definitions": 40, "real_mmlu": 12},
    **{"real_gold_mmlu": 12, "real_gold_calls": 8, "real_code": 8},
}


def main() -> None:
    torch.set_num_threads(1)
    found = {task: asked(task, documents) for task, documents in TASKS.items()}
    about = f"""`python eval/benchmarks/asking.py`: SmolLM2-135M-Instruct in float32, {BATCH} requests or prompts at
        once; {listed(where("torch", "transformers", "lm-eval"))}. Apart: the largest difference of a score
        (of a log-likelihood in nats)."""
    rows = [
        [task, TASKS[task], *(f"{one[name]:.1f}" for name in ("stock", "ours")), f"{one['apart']:.0e}"]
        for task, one in found.items()
    ]
    headings = ["task", "documents", "lm-eval's, s", "ours, s", "apart"]
    keep("asking", {"where": where("torch", "transformers", "lm-eval"), "found": found})
    write("asking", "What likelihoods take", paragraph(about), table(headings, rows))


def asked(task: str, documents: int) -> dict[str, float]:
    """Seconds of both, and how far their scores are apart."""
    request, seconds, scores = request_of(BASE, section_of(task, documents)), {}, []
    for name, kind in (("stock", HFLM), ("ours", LeanHFLM)):
        model: Any = kind(pretrained=str(BASE), dtype="float32", device="cpu", batch_size=BATCH)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            samples = evaluated(model, request, Path(folder))["tasks"][task]["samples"]
            seconds[name] = time.perf_counter() - started
        scores.append(torch.tensor([sample["scores"] for sample in samples], dtype=torch.float64))
    return {**seconds, "apart": float((scores[0] - scores[1]).abs().max())}


def section_of(task: str, documents: int) -> RetentionSection:
    chat = {"apply_chat_template": True} if task.endswith("calls") else {}
    abilities = {"tasks": [task], "limit": documents, **chat}
    return RetentionSection.model_validate({"abilities": abilities, "include_path": "eval/tasks", "batch_size": BATCH})


if __name__ == "__main__":
    main()
