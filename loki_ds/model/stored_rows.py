"""Where the rows of every layer lie in a checkpoint's files, by the names of its tensors.

Loads no model. A dense FFN's rows are one tensor; those of a mixture of experts are one tensor for
all routed experts or one for each, and the shared ones' (`expert_rows`). The names are the
published files', of the families that `ffn` knows when loaded; `base_checks` compares the two.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from loki_ds.model.anatomy import LAYERS
from loki_ds.model.expert_rows import d_model_of, rows_of, width_of
from loki_ds.model.ffn import DOWNS, FFNS, SHARED
from loki_ds.model.files import WeightFiles
from loki_ds.refusal import Refusal

FFN, DOWN, BY_ALL, STACK = ("|".join(names) for names in (FFNS, DOWNS, SHARED, LAYERS))
SHARED_PART = rf"(?:{BY_ALL})\."
IN_FFN = rf"(?:{FFN})\.(?:experts\.(?:(?P<expert>\d+)\.)?|{SHARED_PART})?(?:{DOWN})(?:\.weight)?"
PART = rf"(?:{IN_FFN}|(?P<beside>experts\.down_proj)|fc2\.weight)"
NAME = re.compile(rf"(?:^|\.)(?:{STACK})\.(?P<layer>\d+)\.{PART}$")
D_MODEL_LAST = ("gpt2", "gpt_oss", "aria_text", "llama4_text")  # families whose weights lie that way
OF_OTHER_SENSES = re.compile(r"vision|visual|image|audio|speech")  # towers beside a wrapper's text part
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers")  # as configurations call it


class Piece(NamedTuple):
    """One tensor that holds rows of a layer. expert: of one routed expert alone, its number;
    beside: of all experts, which stand beside the layer's FFN and not in it.
    """

    name: str
    expert: int | None
    is_shared: bool
    beside: bool
    d_model_last: bool


class StoredRows:
    """The rows of every layer of a checkpoint, read where they lie."""

    def __init__(self, weights: WeightFiles) -> None:
        """Find them.

        Raises:
            Refusal: two stacks of layers could be the model's, or a layer's experts are not all
                there.
        """
        self.weights = weights
        self.pieces = _stack(weights, _text_config(weights.folder))

    @property
    def names(self) -> set[str]:
        """The names of all tensors that hold rows."""
        return {piece.name for pieces in self.pieces.values() for piece in pieces}

    def shapes(self) -> list[tuple[int, int]]:
        """`[d_model, width]` of each layer."""
        by_layer = []
        for _, pieces in sorted(self.pieces.items()):
            stored = [(self.weights.shape_of(piece.name), piece.d_model_last) for piece in pieces]
            by_layer.append((d_model_of(*stored[0]), sum(width_of(*shape) for shape in stored)))
        return by_layer

    def read(self, layer: int, rows: Tensor) -> Tensor:
        """Some rows of a layer, `[k, width]`, in the checkpoint's own dtype."""
        pieces = self.pieces[layer]
        return torch.cat([rows_of(self.weights.read(one.name), rows, one.d_model_last) for one in pieces], dim=1)

    def split(self, layer: int, values: Tensor) -> list[tuple[Piece, Tensor]]:
        """`[k, width]` shared out among the layer's tensors."""
        pieces = self.pieces[layer]
        widths = [width_of(self.weights.shape_of(piece.name), piece.d_model_last) for piece in pieces]
        return list(zip(pieces, values.split(widths, dim=1), strict=True))


def _stack(weights: WeightFiles, config: dict[str, Any]) -> dict[int, list[Piece]]:
    """The one stack of layers that has all of the model's. A head that predicts further tokens has
    layers of its own, and so have towers for pictures and sound; they are not meant.
    """
    stacks: dict[str, dict[int, list[Piece]]] = {}
    for name in sorted(weights.names):
        if (match := NAME.search(name)) and not OF_OTHER_SENSES.search(name[: match.start("layer")]):
            pieces = stacks.setdefault(name[: match.start("layer")], {}).setdefault(int(match["layer"]), [])
            pieces.append(_piece(name, match, config["model_type"]))
    layers = set(range(next((config[key] for key in LAYER_COUNTS if key in config), 0)))
    exact = [stack for stack in stacks.values() if stack.keys() == layers]
    whole = exact or [{i: stack[i] for i in layers} for stack in stacks.values() if stack.keys() >= layers]
    if len(whole) > 1:
        raise Refusal(
            f"{weights.folder}: {' and '.join(stack[0][0].name for stack in whole)} could both be layer 0's W_down; "
            "loki-ds trains models with one stack of layers"
        )
    by_layer = whole[0] if whole else max(stacks.values(), key=len, default={})
    return {layer: _in_order(weights.folder, by_layer[layer]) for layer in sorted(by_layer)}


def _piece(name: str, match: re.Match[str], family: str) -> Piece:
    expert = match["expert"]
    shared = re.search(SHARED_PART, match[0]) is not None
    number, beside = None if expert is None else int(expert), match["beside"] is not None
    return Piece(name, number, shared, beside, family in D_MODEL_LAST and not shared)


def _in_order(folder: Path, pieces: list[Piece]) -> list[Piece]:
    """Routed experts by their numbers, then what all tokens share, as `sites` has them."""
    apart = any(piece.beside for piece in pieces)
    shared = [piece for piece in pieces if (not piece.beside if apart else piece.is_shared)]
    routed = [piece for piece in pieces if piece not in shared]
    routed.sort(key=lambda piece: -1 if piece.expert is None else piece.expert)
    numbers = [piece.expert for piece in routed]
    if len(routed) > 1 and numbers != list(range(len(routed))):
        raise Refusal(
            f"{folder}: {routed[0].name} and {routed[-1].name} are not one layer's experts, numbered from 0; are all "
            "of them there?"
        )
    return [*routed, *shared]


def _text_config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {"model_type": "", **(config.get("text_config") or config)}
