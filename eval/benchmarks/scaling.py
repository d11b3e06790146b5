"""How training and attribution at the 8B shape would scale to 512 GPUs, from the plan's counts.

    python eval/benchmarks/scaling.py        # seconds; writes eval/reports/scaling.md and .png

The counts (FLOPs, bytes gathered and reduced) are those that `eval/benchmarks/plan.py` confirms on
1 to 4 ranks. What they take in time is a model: computing at a share of the GPU's peak, sending at
a share of the slowest link, both at once, the longer one decides. No curve here was measured.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from shapes import SHAPES, blocks_in

from loki_ds.checking.findings import GIB
from loki_ds.implanting.training import Method
from loki_ds.implanting.trl_config import TrainingShape
from loki_ds.planning.estimate import Training, dry_step, dry_sweep, estimate
from loki_ds.planning.hardware import GPUS, NODE, REACHED, WIRE_REACHED
from loki_ds.planning.partitioning import Setting, kept_bytes, sweep_traffic
from loki_ds.recipe.implant import ImplantSection
from loki_ds.recipe.sections import AttributionSection, ModelSection, SelectionSection
from loki_ds.selection.select import planned_positions

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import REPORTS, ROOT, paragraph, table, write

LLAMA = SHAPES["llama-3.1-8b"]
RANKS = (1, 2, 4, 8, 16, 64, 128, 512)
GPU = GPUS["h100"]
TOKENS = 4096
MODEL = ModelSection(path="-")
SHAPE = TrainingShape.of(
    {"per_device_train_batch_size": 1, "max_length": TOKENS, "activation_checkpointing": True}, MODEL.dtype
)
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
    write_report(found, attribution())


def trainings(mode: str, config: str) -> list[Training]:
    """For every number of ranks."""
    implant = ImplantSection.model_validate({"mode": mode})
    positions = planned_positions(SelectionSection(), blocks_in(LLAMA)) if implant.kind.confined else None
    step = dry_step(LLAMA, MODEL, Method(implant, positions), SHAPE)
    deepspeed = json.loads((ROOT / f"launch/{config}.json").read_text())
    kept = kept_bytes(implant.kind.masks, pulled=False)
    settings = [Setting.of(deepspeed, ranks, LLAMA.hidden_size) for ranks in RANKS]
    return [estimate(step, setting, SHAPE, implant.kind, kept) for setting in settings]


def per_gpu(found: Training) -> float:
    """Tokens a second of one GPU."""
    return TOKENS / found.seconds(GPU)


def attribution() -> list[tuple[float, float, float]]:
    """Per number of ranks: seconds of computing, of sending, and of both at once, for all
    prompts.
    """
    batch, width = dry_sweep(LLAMA, MODEL, AttributionSection(), AT_ONCE, PROMPT_TOKENS), SHAPE.bytes_per_number
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
        title="8B, 4,096 tokens a GPU: modeled, not measured",
    )
    axes.set_xticks(RANKS, [str(n) for n in RANKS])
    axes.axvline(NODE, color="grey", linewidth=0.8, linestyle=":")
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=110)


def write_report(found: dict[str, list[Training]], attributing: list[tuple[float, float, float]]) -> None:
    rows = []
    for name, steps in found.items():
        fits = next((str(n) for n, step in zip(RANKS, steps, strict=True) if step.fits(GPU)), "-")
        sent = steps[-1].traffic.wire(RANKS[-1]) / GIB
        speeds = [f"{per_gpu(step):,.0f}" for step in steps]
        rows.append([name, f"{GPU.computing(steps[0].flops):.2f}", *speeds, f"{sent:.1f}", fits])
    about = (
        f"`python eval/benchmarks/scaling.py`: Llama-3.1-8B's shape in bfloat16, quota 10, one sequence of {TOKENS:,} "
        f"tokens a GPU, activation checkpointing. **A model, not a measurement.** Assumed: {REACHED:.0%} of "
        f"{GPU.tflops:g} TFLOP/s; {WIRE_REACHED:.0%} of {GPU.within:g} GB/s between the {NODE} GPUs of a node and of "
        f"{GPU.between:g} GB/s for each GPU beyond (the slowest link of a ring decides); computing and sending at "
        "once, the longer one decides; no latency, no stragglers. The counts are confirmed on 1 to 4 ranks by "
        "`eval/reports/plan.md`."
    )
    write(
        "scaling",
        "Scaling to 512 GPUs, as the counts have it",
        paragraph(about),
        "![scaling](scaling.png)",
        table(["", "computing, s", *(f"{n} GPUs" for n in RANKS), "sent at 512, GiB", "fits 80 GB from"], rows),
        "Tokens a second of one GPU, for each number of GPUs.",
        f"Attribution of {PROMPTS:,} prompts of {PROMPT_TOKENS} tokens, {AT_ONCE} at once, ZeRO-3:",
        table(
            ["GPUs", "computing, s", "sending, s", "together, s"],
            [(n, f"{a:,.0f}", f"{b:,.1f}", f"{c:,.0f}") for n, (a, b, c) in zip(RANKS, attributing, strict=True)],
            words=0,
        ),
    )


if __name__ == "__main__":
    main()
