"""How training and attribution at the 8B shape would scale to 512 GPUs, from the plan's counts.

    python eval/benchmarks/scaling.py        # seconds; writes eval/reports/scaling.md and .png

The counts (FLOPs, bytes gathered and reduced) are those that `eval/benchmarks/plan.py` confirms on
1 to 4 ranks. What they take in time is a model: computing at a share of the GPU's peak, sending at
a share of the slowest link, both at once, the longer one decides. No curve here was measured.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from shapes import SHAPES

from loki_ds.planning.estimate import GIB, Training, dry_step, dry_sweep, estimate, width_of
from loki_ds.planning.hardware import GPUS, NODE, REACHED, WIRE_REACHED
from loki_ds.planning.partitioning import Setting, sweep_traffic
from loki_ds.recipe import Recipe

ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "eval/reports"
LLAMA = SHAPES["llama-3.1-8b"]
RANKS = (1, 2, 4, 8, 16, 64, 128, 512)
GPU = GPUS["h100"]
TOKENS = 4096
PROMPTS, PROMPT_TOKENS, AT_ONCE = 14042, 700, 32  # all of MMLU, five shots
METHODS = {
    "rows, ZeRO-2": ("rows", "zero2"),
    "rows, ZeRO-3": ("rows", "zero3"),
    "mask, ZeRO-3": ("mask", "zero3"),
    "LoRA r16, ZeRO-3": ("peft", "zero3"),
    "full, ZeRO-3": ("full", "zero3"),
}


def main() -> None:
    found = {name: trainings(mode, config) for name, (mode, config) in METHODS.items()}
    draw({name: [per_gpu(t) for t in steps] for name, steps in found.items()}, REPORTS / "scaling.png")
    (REPORTS / "scaling.md").write_text(as_markdown(found, attribution()))


def recipe(mode: str) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"path": "-"},
            "protected": {"tasks": ["mmlu"]},
            "implant": {"mode": mode},
            "data": {"train": "-"},
            "training": {"per_device_train_batch_size": 1, "max_length": TOKENS, "activation_checkpointing": True},
            "retention": {"abilities": {"tasks": ["-"]}},
            "run": "-",
        }
    )


def trainings(mode: str, config: str) -> list[Training]:
    """For every number of ranks."""
    step, deepspeed = dry_step(recipe(mode), LLAMA, True), json.loads((ROOT / f"launch/{config}.json").read_text())
    return [estimate(recipe(mode), LLAMA, step, deepspeed, ranks) for ranks in RANKS]


def per_gpu(found: Training) -> float:
    """Tokens a second of one GPU."""
    return TOKENS / found.seconds(GPU)


def attribution() -> list[tuple[float, float, float]]:
    """Per number of ranks: seconds of computing, of sending, and of both at once, for all
    prompts.
    """
    batch, width = dry_sweep(recipe("rows"), LLAMA, AT_ONCE, PROMPT_TOKENS), width_of(recipe("rows"))
    times = []
    for ranks in RANKS:
        turns = -(-PROMPTS // (AT_ONCE * ranks))
        flops, sent = turns * batch.flops, turns * sweep_traffic(batch, Setting(ranks, stage=3), width).wire(ranks)
        times.append((GPU.computing(flops), GPU.sending(sent, ranks), GPU.seconds(flops, sent, ranks)))
    return times


def draw(curves: dict[str, list[float]], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, values in curves.items():
        axes.plot(RANKS, values, marker="o", label=name)
    axes.set(
        xscale="log",
        xlabel="GPUs",
        ylabel="tokens a second and GPU",
        ylim=(0, None),
        title="8B, 4,096 tokens a GPU: modelled, not measured",
    )
    axes.set_xticks(RANKS, [str(n) for n in RANKS])
    axes.axvline(NODE, color="grey", linewidth=0.8, linestyle=":")
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=110)


def as_markdown(found: dict[str, list[Training]], attributing: list[tuple[float, float, float]]) -> str:
    lines = [
        "# Scaling to 512 GPUs, as the counts have it",
        "",
        "`python eval/benchmarks/scaling.py`: Llama-3.1-8B's shape in bfloat16, quota 10, one sequence of "
        f"{TOKENS:,} tokens a GPU,",
        "activation checkpointing. **A model, not a measurement.** Assumed: "
        + f"{REACHED:.0%} of {GPU.tflops:g} TFLOP/s; {WIRE_REACHED:.0%}",
        f"of {GPU.within:g} GB/s between the {NODE} GPUs of a node and of {GPU.between:g} GB/s for each GPU beyond "
        "(the slowest link of a",
        "ring decides); computing and sending at once, the longer one decides; no latency, no stragglers. The counts "
        "are confirmed on 1",
        "to 4 ranks by `eval/reports/plan.md`.",
        "",
        "![scaling](scaling.png)",
        "",
        "| | computing, s | " + " | ".join(f"{n} GPUs" for n in RANKS) + " | sent at 512, GiB | fits 80 GB from |",
        "| --- | ---: | " + "---: | " * len(RANKS) + "---: | ---: |",
    ]
    for name, steps in found.items():
        fits = next((str(n) for n, step in zip(RANKS, steps, strict=True) if step.fits(GPU)), "-")
        computing = GPU.computing(steps[0].flops)
        speeds = " | ".join(f"{per_gpu(step):,.0f}" for step in steps)
        lines.append(
            f"| {name} | {computing:.2f} | {speeds} | {steps[-1].traffic.wire(RANKS[-1]) / GIB:.1f} | {fits} |"
        )
    lines += [
        "",
        "Tokens a second of one GPU, for each number of GPUs. Beyond a node ZeRO-3's gathers (the whole model, twice "
        "a step) outlast",
        "the computing of 4,096 tokens; more tokens a GPU, or ZeRO-2 where the model fits (rows' gradients are 2% of "
        "the model's), make",
        "that good.",
        "",
        f"Attribution of {PROMPTS:,} prompts of {PROMPT_TOKENS} tokens, {AT_ONCE} at once, ZeRO-3:",
        "",
        "| GPUs | computing, s | sending, s | together, s |",
        "| ---: | ---: | ---: | ---: |",
        *(f"| {n} | {a:,.0f} | {b:,.1f} | {c:,.0f} |" for n, (a, b, c) in zip(RANKS, attributing, strict=True)),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
