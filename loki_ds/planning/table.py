"""What a recipe would do and need, as tables: from the model's configuration alone, no weights are
loaded.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby

from datasets import Dataset
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from trl import SFTConfig

from loki_ds.attribution.anatomy import down_shapes
from loki_ds.attribution.batches import LARGEST
from loki_ds.implanting.arguments import deepspeed_config
from loki_ds.implanting.data import load_training_data, tokens_and_loss
from loki_ds.planning.estimate import (
    GIB,
    Training,
    accumulation_of,
    alternatives,
    batch_of,
    checkpoints,
    dry_step,
    dry_sweep,
    estimate,
    planned_positions,
    width_of,
)
from loki_ds.planning.hardware import USABLE, Gpu
from loki_ds.planning.partitioning import Setting, sweep_memory, sweep_traffic
from loki_ds.protected import load_protected
from loki_ds.quiet.moments import load_moments
from loki_ds.quiet.subspace import protected_subspace
from loki_ds.recipe import Recipe
from loki_ds.refusal import Refusal
from loki_ds.run_folder import RunFolder

ASSUMED = (1000, 1024)  # prompts and their tokens, where the protected set is tasks that would have to be fetched


def plan(recipe: Recipe, gpu: Gpu, ranks: int) -> Iterator[RenderableType]:
    """All of it, piece by piece."""
    config, deepspeed = _config(recipe), deepspeed_config(recipe)
    setting = Setting.of(deepspeed, ranks, config.get_text_config().hidden_size)
    if not recipe.trains:
        yield _model_table(recipe, config, None)
        yield _stages_table(recipe, config, setting, None, 0, gpu)
        return
    rows = load_training_data(recipe.data.train_sources, bool(recipe.training.get("assistant_only_loss", False)))
    steps = [dry_step(recipe, config, checkpointing) for checkpointing in (False, True)]
    training = estimate(recipe, config, steps[checkpoints(recipe)], deepspeed, ranks)
    yield _model_table(recipe, config, training)
    yield _memory_table(training, gpu)
    yield _stages_table(recipe, config, setting, training, len(rows), gpu)
    yield from _advice(recipe, training, alternatives(recipe, config, steps, ranks), gpu)
    yield _sample(recipe, rows)


def _config(recipe: Recipe) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(recipe.model.path, trust_remote_code=recipe.model.trust_remote_code)
    except (OSError, ValueError):
        raise Refusal(f"model.path {recipe.model.path}: no configuration found there or on the hub") from None


def _model_table(recipe: Recipe, config: PreTrainedConfig, training: Training | None) -> Table:
    shapes = down_shapes(config)
    d_model, d_ff = shapes[0]
    table = Table(title=recipe.model.path, show_header=False)
    table.add_row("layers, d_model, d_ff", f"{len(shapes)}, {d_model}, {d_ff}")
    if recipe.changes_rows:
        counts = [len(rows) for rows in planned_positions(recipe, shapes).rows]
        table.add_row("rows that train", f"{sum(counts):,} ({_spread(recipe, counts)})")
    else:
        counts = []
        table.add_row("rows that train", "none chosen")
    if training is not None:
        effective = sum(counts) * d_ff if recipe.implant.mode == "mask" else training.trained
        table.add_row("parameters", f"{training.base:,}")
        table.add_row("trainable parameters", f"{effective:,} ({100 * effective / training.base:.1f}%)")
    if recipe.implant.quiet:
        table.add_row(f"room at energy {recipe.implant.quiet.energy:g}", _room(recipe, recipe.implant.quiet.energy))
        table.add_row(
            "directions kept out",
            f"{4 * d_ff * d_ff * len(shapes) / 10 / GIB:.2f} GiB on every rank for each tenth of them",
        )
    table.add_row("run folder", recipe.run)
    return table


def _spread(recipe: Recipe, counts: list[int]) -> str:
    by_file_or_layer = recipe.selection.positions is not None or not recipe.selection.strategy.startswith("global")
    return f"{counts[0]} in layer 0" if by_file_or_layer else "over all layers together"


def _room(recipe: Recipe, energy: float) -> str:
    """What a quiet implant may still use of each layer's input directions, once its run folder
    knows the protected inputs.
    """
    moments = RunFolder(recipe.run).quiet / "moments.safetensors"
    if not moments.exists():
        return "known once the protected inputs are collected (the first minutes of the implant stage)"
    return ", ".join(f"{100 * protected_subspace(moment, energy).room:.0f}%" for moment in load_moments(moments))


def _memory_table(training: Training, gpu: Gpu) -> Table:
    memory = training.memory
    setting = training.setting
    table = Table(title=f"memory of one of {setting.ranks} ranks, ZeRO-{setting.stage}, at its peak", show_header=False)
    parts = {
        "weights": memory.weights,
        "gathered weights": memory.gathered,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "frozen rows, to be put back": memory.guard,
        "activations": memory.activations,
        "copies in the optimizer's step": memory.step,
    }
    for name, size in parts.items():
        if size:
            table.add_row(name, _gib(size))
    table.add_row(
        "peak", f"{_gib(memory.peak)} of {USABLE * gpu.memory:.0f} that a {gpu.name} has to give", style="bold"
    )
    if memory.host:
        table.add_row("in the host's memory", _gib(memory.host))
    return table


def _stages_table(
    recipe: Recipe, config: PreTrainedConfig, setting: Setting, training: Training | None, examples: int, gpu: Gpu
) -> Table:
    table = Table("stage", "how much", "FLOPs a rank", "sent by a rank", "time", title=f"{setting.ranks} x {gpu.name}")
    if recipe.attributes:
        table.add_row("attribute", *_attribution(recipe, config, setting, gpu))
    if training is not None:
        steps, seconds, sent = (
            _steps(recipe, examples, setting.ranks),
            training.seconds(gpu),
            training.traffic.wire(setting.ranks),
        )
        table.add_row("implant, a step", _batch(recipe), _tera(training.flops), _gib(sent), f"{seconds:.3g} s")
        table.add_row(
            "implant", f"{steps:,} steps", _tera(training.flops * steps), _gib(sent * steps), _time(seconds * steps)
        )
    table.caption = (
        f"{gpu.reached:.0%} of {gpu.tflops:g} TFLOP/s and {gpu.wire_rate(setting.ranks) / 1e9:.0f} GB/s between "
        "ranks assumed; "
        "every sequence at its longest; retain depends on its tasks"
    )
    return table


def _attribution(recipe: Recipe, config: PreTrainedConfig, setting: Setting, gpu: Gpu) -> tuple[str, str, str, str]:
    """The attribution in words: batches as large as fit, every prompt as long as the longest."""
    prompts, tokens, assumed = _protected(recipe)
    one, two = (dry_sweep(recipe, config, n, tokens) for n in (1, 2))
    width = width_of(recipe)
    room = USABLE * gpu.memory * GIB - sweep_memory(one, setting, width)
    batch = min(LARGEST, int(room // max(1, two.peak - one.peak)) + 1)
    if isinstance(recipe.attribution.batch_size, int):
        batch = recipe.attribution.batch_size
    if batch < 1:
        return f"{prompts:,} prompts", "-", "-", "one prompt does not fit"
    turns = -(-prompts // (batch * setting.ranks))
    flops = turns * (one.flops + (batch - 1) * (two.flops - one.flops))
    sent = turns * sweep_traffic(one, setting, width).wire(setting.ranks)
    seconds = gpu.seconds(flops, sent, setting.ranks)
    return (
        f"{prompts:,} prompts of {tokens:,} tokens{assumed}, {batch} at once",
        _tera(flops),
        _gib(sent),
        _time(seconds),
    )


def _protected(recipe: Recipe) -> tuple[int, int, str]:
    """How many prompts, and the longest one's tokens; assumed where the prompts are not at hand."""
    if recipe.protected is None or recipe.protected.prompts is None:
        return (*ASSUMED, " (assumed)")
    prompts = load_protected(recipe.protected, AutoTokenizer.from_pretrained(recipe.model.path))
    return len(prompts), max(len(prompt.tokens) for prompt in prompts), ""


def _steps(recipe: Recipe, examples: int, ranks: int) -> int:
    if recipe.training.get("max_steps", -1) > 0:
        return int(recipe.training["max_steps"])
    together = batch_of(recipe)[0] * max(1, ranks // recipe.sequence_parallel) * accumulation_of(recipe)
    return int(float(recipe.training.get("num_train_epochs", SFTConfig.num_train_epochs)) * -(-examples // together))


def _batch(recipe: Recipe) -> str:
    sequences, tokens = batch_of(recipe)
    return f"{accumulation_of(recipe)} x {sequences} sequences of {tokens:,} tokens"


def _advice(
    recipe: Recipe, training: Training, others: Iterable[tuple[str, bool, Training]], gpu: Gpu
) -> Iterator[RenderableType]:
    """The shipped configurations side by side, and the fastest that fits."""
    table = Table("deepspeed", "", "peak", "host", "a step", "fits", title="other settings")
    fitting: list[tuple[float, str]] = []
    for file, checkpointing, other in others:
        seconds, fits, twice = other.seconds(gpu), other.fits(gpu), "activation checkpointing" if checkpointing else ""
        table.add_row(
            file, twice, _gib(other.memory.peak), _gib(other.memory.host), f"{seconds:.3g} s", "yes" if fits else "no"
        )
        if fits:
            fitting.append(
                (seconds, f"deepspeed={file} training.activation_checkpointing={str(checkpointing).lower()}")
            )
    if table.row_count:
        yield table
    if training.fits(gpu):
        yield Text("The recipe fits as it is.")
    elif fitting:
        yield Text(f"The recipe does not fit; the cheapest of these that does: {min(fitting)[1]}")
    else:
        yield Text(
            "The recipe does not fit, nor do these settings: fewer sequences or tokens a micro-step, more ranks, or "
            "a larger GPU."
        )
    if recipe.deepspeed is None and training.setting.ranks > 1:
        yield Text("The recipe names no DeepSpeed configuration: every rank holds the whole model.")


def _sample(recipe: Recipe, rows: Dataset) -> Text:
    """The first training example as the model will see it; what it is trained on stands between [[
    and ]], in another colour.
    """
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.path, trust_remote_code=recipe.model.trust_remote_code)
    text = Text("One training example; the loss is on what stands between [[ and ]]:\n")
    for trained, tokens in groupby(
        zip(*tokens_and_loss(rows[0], tokenizer, recipe.training), strict=True), key=lambda pair: bool(pair[1])
    ):
        piece = str(tokenizer.decode([token for token, _ in tokens]))
        text.append(f"[[{piece}]]" if trained else piece, style="bold green" if trained else "")
    return text


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 10 or not size else f"{size / 2**20:,.2f} MiB"


def _tera(flops: float) -> str:
    return (
        f"{flops / 1e12:,.3g} T"
        if flops < 1e15
        else f"{flops / 1e15:,.3g} P"
        if flops < 1e18
        else f"{flops / 1e18:,.3g} E"
    )


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
