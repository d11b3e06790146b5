"""A plan as tables for the terminal. Computes nothing."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from loki_ds.checking.findings import GIB, as_table
from loki_ds.planning.estimate import Training
from loki_ds.planning.hardware import USABLE, Gpu
from loki_ds.planning.plan import Plan
from loki_ds.selection.blocks import in_words


def tables(plan: Plan) -> Iterator[RenderableType]:
    """All of it, piece by piece."""
    yield _model_table(plan)
    yield as_table(plan.findings)
    if plan.training is not None:
        yield _memory_table(plan.training, plan.gpu)
    yield _stages_table(plan)
    if plan.training is not None:
        yield from _advice(plan, plan.training)
        yield _example(plan.example)


def _model_table(plan: Plan) -> Table:
    table = Table(title=plan.model, show_header=False)
    table.add_row("planned for", f"{plan.setting.ranks} x {plan.gpu.name} (--ranks, --gpu)")
    if plan.blocks:
        widths, counts = (sorted(set(sizes)) for sizes in zip(*((b.width, b.rows) for b in plan.blocks), strict=True))
        layers = len({block.layer for block in plan.blocks})
        table.add_row("layers, rows in each weight", f"{layers}, {' or '.join(map(str, counts))}")
        table.add_row("numbers in a row", " or ".join(map(str, widths)))
    if plan.rows is None:
        table.add_row("rows that train", "none chosen")
    else:
        first = next((place for place, count in enumerate(plan.rows) if count), 0)
        each = f"{plan.rows[first]} in {in_words(plan.blocks[first].name)}"
        spread = "over all layers together" if plan.over_all_layers else each
        table.add_row("rows that train", f"{sum(plan.rows):,} ({spread})")
    if plan.training is not None and plan.trainable is not None:
        table.add_row("parameters", f"{plan.training.base:,}")
        share = 100 * plan.trainable / plan.training.base
        table.add_row("trainable parameters", f"{plan.trainable:,} ({share:.1f}%)")
    table.add_row("run folder", plan.run)
    return table


def _memory_table(training: Training, gpu: Gpu) -> Table:
    memory, setting = training.memory, training.setting
    title = f"memory of one of {setting.ranks} ranks, ZeRO-{setting.stage}, at its peak"
    table = Table(title=title, show_header=False)
    parts = {
        "weights": memory.weights,
        "gathered weights": memory.gathered,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "what is put back or pulled to": memory.guard,
        "activations": memory.activations,
        "copies in the optimizer's step": memory.step,
    }
    for name, size in parts.items():
        if size:
            table.add_row(name, _gib(size))
    peak = f"{_gib(memory.peak)} of {USABLE * gpu.memory:.0f} that a {gpu.name} has to give"
    table.add_row("peak", peak, style="bold")
    if memory.host:
        table.add_row("in the host's memory", _gib(memory.host))
    return table


def _stages_table(plan: Plan) -> Table:
    ranks, gpu = plan.setting.ranks, plan.gpu
    table = Table("stage", "how much", "FLOPs a rank", "sent by a rank", "time", title=f"{ranks} x {gpu.name}")
    for stage in plan.stages:
        figures = (_or_dash(_tera, stage.flops), _or_dash(_gib, stage.sent), _or_dash(_time, stage.seconds))
        table.add_row(stage.name, stage.amount, *figures)
    table.caption = (
        f"{gpu.reached:.0%} of {gpu.tflops:g} TFLOP/s and {gpu.wire_rate(ranks) / 1e9:.0f} GB/s between ranks assumed; "
        "every sequence as long as the longest of the first rows, packed ones as long as may be; retain depends on its "
        "tasks"
    )
    return table


def _advice(plan: Plan, training: Training) -> Iterator[RenderableType]:
    """The shipped configurations side by side, and the fastest that fits."""
    table = Table("deepspeed", "", "peak", "host", "a step", "fits", title="other settings")
    fitting: list[tuple[float, str]] = []
    for file, checkpointing, other in plan.alternatives:
        seconds, fits, twice = other.seconds(plan.gpu), other.fits(plan.gpu), "twice" if checkpointing else ""
        memory = other.memory
        table.add_row(file, twice, _gib(memory.peak), _gib(memory.host), _time(seconds), "yes" if fits else "no")
        if fits:
            on = str(checkpointing).lower()
            fitting.append((seconds, f"deepspeed={file} training.activation_checkpointing={on}"))
    table.caption = "twice: activation checkpointing, activations are computed twice"
    yield table
    if training.fits(plan.gpu):
        yield Text("The recipe fits as it is.")
    elif fitting:
        yield Text(f"The recipe does not fit; the cheapest of these that does: {min(fitting)[1]}")
    else:
        yield Text(
            "The recipe does not fit, nor do these settings: fewer sequences or tokens a micro-step, more ranks, or a "
            "larger GPU."
        )
    if not plan.configured and training.setting.ranks > 1:
        yield Text("The recipe names no DeepSpeed configuration: every rank holds the whole model.")


def _example(pieces: list[tuple[str, bool]]) -> Text:
    """What is trained on stands between [[ and ]], in another color."""
    text = Text("One training example; the loss is on what stands between [[ and ]]:\n")
    for piece, trained in pieces:
        text.append(f"[[{piece}]]" if trained else piece, style="bold green" if trained else "")
    return text


def _or_dash(form, value: float | None) -> str:  # type: ignore[no-untyped-def]
    return "-" if value is None else form(value)


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 10 or not size else f"{size / 2**20:,.2f} MiB"


def _tera(flops: float) -> str:
    if flops < 1e15:
        return f"{flops / 1e12:,.3g} T"
    return f"{flops / 1e15:,.3g} P" if flops < 1e18 else f"{flops / 1e18:,.3g} E"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
