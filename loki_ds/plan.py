"""What a recipe would do, from the model's configuration alone: no weights are loaded."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from loki_ds.attribution.anatomy import down_weights
from loki_ds.implanting.data import load_training_data
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
    trainable = _trainable(recipe, shapes, rows, total)
    table = Table(title=f"{recipe.model.path}", show_header=False)
    table.add_row("layers, d_model, d_ff", f"{len(shapes)}, {shapes[0][0]}, {shapes[0][1]}")
    table.add_row("parameters", f"{total:,}")
    table.add_row("rows that train", "none chosen" if rows is None else f"{sum(rows):,} ({rows[0]} in layer 0)")
    if trainable is not None:
        table.add_row("trainable parameters", f"{trainable:,} ({100 * trainable / total:.1f}%)")
    table.add_row("attribution", f"{recipe.attribution.steps} steps, 2 gathers per layer and batch" if recipe.attributes else "none")
    table.add_row("run folder", recipe.run)
    return table


def _trainable(recipe: Recipe, shapes: list[tuple[int, ...]], rows: list[int] | None, total: int) -> int | None:
    """Trainable parameters; None for PEFT baselines, which count their own."""
    if recipe.implant.mode == "peft":
        return None
    if rows is None:
        return total
    if recipe.implant.mode == "lora":
        return sum(recipe.implant.lora.rank * (n + d_ff) for n, (_, d_ff) in zip(rows, shapes, strict=True) if n)
    return sum(n * d_ff for n, (_, d_ff) in zip(rows, shapes, strict=True))


def _rows(recipe: Recipe, shapes: list[tuple[int, ...]]) -> list[int] | None:
    if not recipe.trains_rows:
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
    for trained, tokens in groupby(zip(*_tokens_and_loss(row, tokenizer, recipe), strict=True), key=lambda pair: bool(pair[1])):
        piece = str(tokenizer.decode([token for token, _ in tokens]))
        text.append(f"[[{piece}]]" if trained else piece, style="bold green" if trained else "")
    return text


def _tokens_and_loss(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> tuple[list[int], list[int]]:
    """Token ids and, for each, whether it is trained on; as TRL's SFTTrainer decides it."""
    if "messages" in row:
        tools = json.loads(row["tools"]) if isinstance(row.get("tools"), str) else row.get("tools")
        found: Any = tokenizer.apply_chat_template(row["messages"], tools=tools, return_dict=True, return_assistant_tokens_mask=True)
        everything = not recipe.training.get("assistant_only_loss", False)
        return found["input_ids"], [1] * len(found["input_ids"]) if everything else found["assistant_masks"]
    if "text" in row:
        tokens = tokenizer(row["text"])["input_ids"]
        return tokens, [1] * len(tokens)
    if not isinstance(row["prompt"], str):
        raise Refusal("data.train: plan shows conversational prompts only as 'messages'")
    shown, learnt = tokenizer(row["prompt"])["input_ids"], tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
    prompt_counts = int(recipe.training.get("completion_only_loss") is False)
    return shown + learnt, [prompt_counts] * len(shown) + [1] * len(learnt)
