"""What a recipe would do, from the model's configuration alone: no weights are loaded."""

from pathlib import Path

import torch
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from loki_ds.attribution.anatomy import down_weights
from loki_ds.positions import Positions
from loki_ds.recipe import Recipe
from loki_ds.refusal import Refusal
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
    trainable = total if rows is None else sum(n * d_ff for n, (_, d_ff) in zip(rows, shapes, strict=True))
    table = Table(title=f"{recipe.model.path}", show_header=False)
    table.add_row("layers, d_model, d_ff", f"{len(shapes)}, {shapes[0][0]}, {shapes[0][1]}")
    table.add_row("parameters", f"{total:,}")
    table.add_row("rows that train", "all parameters" if rows is None else f"{sum(rows):,} ({rows[0]} in layer 0)")
    table.add_row("trainable parameters", f"{trainable:,} ({100 * trainable / total:.1f}%)")
    table.add_row("attribution", f"{recipe.attribution.steps} steps, 2 gathers per layer and batch" if recipe.attributes else "none")
    table.add_row("run folder", recipe.run)
    return table


def _rows(recipe: Recipe, shapes: list[tuple[int, ...]]) -> list[int] | None:
    if not recipe.trains_rows:
        return None
    if recipe.selection.positions is not None:
        positions = Positions.load(Path(recipe.selection.positions))
        positions.check_fits(shapes, recipe.selection.positions)
        return [len(rows) for rows in positions.rows]
    return [rows_per_layer(recipe.selection.quota, d_model) for d_model, _ in shapes]
