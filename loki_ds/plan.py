"""What a recipe would do, from the model's configuration alone: no weights are loaded."""

from itertools import groupby
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from loki_ds.attribution.anatomy import down_weights
from loki_ds.implanting.data import load_training_data, tokens_and_loss
from loki_ds.positions import Positions
from loki_ds.quiet.moments import load_moments
from loki_ds.quiet.subspace import protected_subspace
from loki_ds.recipe import Recipe
from loki_ds.refusal import Refusal
from loki_ds.run_folder import RunFolder
from loki_ds.selection import rows_per_layer


def plan_recipe(recipe: Recipe) -> Table:
    """Rows and parameters that would train, and what the attribution would sweep."""
    try:
        config = AutoConfig.from_pretrained(recipe.model.path, trust_remote_code=recipe.model.trust_remote_code)
    except (OSError, ValueError):
        raise Refusal(f"model.path {recipe.model.path}: no configuration found there or on the hub") from None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = [tuple(weight.shape) for weight in down_weights(model)]
    total = sum(parameter.numel() for parameter in model.parameters())
    rows = _rows(recipe, shapes)
    trainable = _trainable(recipe, shapes, rows, total)
    table = Table(title=f"{recipe.model.path}", show_header=False)
    table.add_row("layers, d_model, d_ff", f"{len(shapes)}, {shapes[0][0]}, {shapes[0][1]}")
    table.add_row("parameters", f"{total:,}")
    table.add_row("rows that train", "none chosen" if rows is None else f"{sum(rows):,} ({_spread(recipe, rows)})")
    if trainable is not None:
        table.add_row("trainable parameters", f"{trainable:,} ({100 * trainable / total:.1f}%)")
    table.add_row("attribution", f"{recipe.attribution.steps} steps, 2 gathers per layer and batch" if recipe.attributes else "none")
    if recipe.implant.quiet:
        table.add_row(f"room at energy {recipe.implant.quiet.energy:g}", _room(recipe, recipe.implant.quiet.energy))
    table.add_row("run folder", recipe.run)
    return table


def _room(recipe: Recipe, energy: float) -> str:
    """What a quiet implant may still use of each layer's input directions, once its run folder knows the protected inputs."""
    moments = RunFolder(recipe.run).quiet / "moments.safetensors"
    if not moments.exists():
        return "known once the protected inputs are collected (the first minutes of the implant stage)"
    return ", ".join(f"{100 * protected_subspace(moment, energy).room:.0f}%" for moment in load_moments(moments))


def _spread(recipe: Recipe, rows: list[int]) -> str:
    by_file_or_layer = recipe.selection.positions is not None or not recipe.selection.strategy.startswith("global")
    return f"{rows[0]} in layer 0" if by_file_or_layer else "over all layers together"


def _trainable(recipe: Recipe, shapes: list[tuple[int, ...]], rows: list[int] | None, total: int) -> int | None:
    """Trainable parameters; None for PEFT baselines, which count their own."""
    if recipe.implant.mode == "peft":
        return None
    if not recipe.trains:
        return 0
    if rows is None:
        return total
    if recipe.implant.mode == "lora":
        return sum(recipe.implant.lora.rank * (n + d_ff) for n, (_, d_ff) in zip(rows, shapes, strict=True) if n)
    return sum(n * d_ff for n, (_, d_ff) in zip(rows, shapes, strict=True))


def _rows(recipe: Recipe, shapes: list[tuple[int, ...]]) -> list[int] | None:
    if not recipe.changes_rows:
        return None
    if recipe.selection.positions is not None:
        positions = Positions.load(Path(recipe.selection.positions))
        positions.check_fits(shapes, recipe.selection.positions)
        return [len(rows) for rows in positions.rows]
    return [rows_per_layer(recipe.selection.quota, d_model) for d_model, _ in shapes]


def plan_sample(recipe: Recipe) -> Text:
    """The first training example as the model will see it; what it is trained on stands between [[ and ]], in another colour."""
    only_assistant = bool(recipe.training.get("assistant_only_loss", False))
    row = load_training_data(recipe.data.train_sources, only_assistant)[0]
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.path, trust_remote_code=recipe.model.trust_remote_code)
    text = Text("One training example; the loss is on what stands between [[ and ]]:\n")
    for trained, tokens in groupby(zip(*tokens_and_loss(row, tokenizer, recipe.training), strict=True), key=lambda pair: bool(pair[1])):
        piece = str(tokenizer.decode([token for token, _ in tokens]))
        text.append(f"[[{piece}]]" if trained else piece, style="bold green" if trained else "")
    return text
