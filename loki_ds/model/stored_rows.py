"""Where blocks of rows lie in a checkpoint's files, by the names of its tensors.

Loads no model. A dense layer's rows are one tensor; those of a mixture of experts are one tensor
for all routed experts or one for each, gate and up apart, and the shared ones' (`expert_rows`). The
names are the published files', of the families that `ffn` and `row_blocks` know when loaded;
`base_checks` compares the two.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from loki_ds.model.anatomy import LAYERS
from loki_ds.model.expert_rows import row_count_of, rows_of, width_of
from loki_ds.model.ffn import DOWNS, FFNS, SHARED
from loki_ds.model.files import WeightFiles, config_of
from loki_ds.refusal import Refusal
from loki_ds.selection.blocks import DOWN as DOWN_BLOCK
from loki_ds.selection.blocks import Block, down_names, layer_of

FFN, DOWN, BY_ALL, STACK = ("|".join(names) for names in (FFNS, DOWNS, SHARED, LAYERS))
SHARED_PART = rf"(?:{BY_ALL})\."
IN_FFN = rf"(?:{FFN})\.(?:experts\.(?:(?P<expert>\d+)\.)?|{SHARED_PART})?(?:{DOWN})(?:\.weight)?"
PART = rf"(?:{IN_FFN}|(?P<beside>experts\.down_proj)|fc2\.weight)"
NAME = re.compile(rf"(?:^|\.)(?:{STACK})\.(?P<layer>\d+)\.{PART}$")
ROWS_LAST = ("gpt2", "gpt_oss", "aria_text", "llama4_text")  # families whose weights lie that way
CONV1D = ("gpt2",)  # families in which those of linear layers do, too
OF_OTHER_SENSES = re.compile(r"vision|visual|image|audio|speech")  # towers beside a wrapper's text part
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers")  # as configurations call it


# How files call an expert's gate and up where each is a tensor of its own.
GATE_AND_UP = (("gate_proj", "up_proj"), ("w1", "w3"))


class Piece(NamedTuple):
    """One tensor that holds rows of a block. expert: of one routed expert alone, its number;
    beside: of all experts, which stand beside the layer's FFN and not in it; first: which row of
    the block is its first.
    """

    name: str
    expert: int | None
    is_shared: bool
    beside: bool
    rows_last: bool
    first: int = 0


class StoredRows:
    """The rows of some blocks of a checkpoint, read where they lie.

    pieces: by the number of a block.
    """

    def __init__(self, weights: WeightFiles, names: Sequence[str] | None = None) -> None:
        """Find them.

        names: of the blocks; every layer's down-projections when not given.

        Raises:
            Refusal: two stacks of layers could be the model's, a layer's experts are not all there,
                or no tensor is known to hold a block.
        """
        self.weights = weights
        config = _text_config(weights.folder)
        prefix, downs = _stack(weights, config)
        self.names = down_names(len(downs)) if names is None else tuple(names)
        named = NamedTensors(weights, prefix, config["model_type"])
        self.pieces = {
            i: downs.get(layer_of(name), []) if name.endswith(f".{DOWN_BLOCK}") else named.pieces_of(name)
            for i, name in enumerate(self.names)
        }
        self._shapes = {name: weights.shape_of(name) for name in self.tensors}

    @property
    def tensors(self) -> set[str]:
        """The names of all tensors that hold rows."""
        return {piece.name for pieces in self.pieces.values() for piece in pieces}

    def blocks(self) -> list[Block]:
        """Names and sizes."""
        return [self._block(i, name) for i, name in enumerate(self.names)]

    def _block(self, i: int, name: str) -> Block:
        ranges = self._ranges(i)
        rows = sum(self._rows(pieces[0]) for pieces in ranges)
        return Block(name, rows, sum(map(self._width, ranges[0])) if ranges else 0, name)

    def _ranges(self, i: int) -> list[list[Piece]]:
        """A block's tensors by the rows that they hold: side by side, those of the same rows."""
        by_first: dict[int, list[Piece]] = {}
        for piece in self.pieces[i]:
            by_first.setdefault(piece.first, []).append(piece)
        return [by_first[first] for first in sorted(by_first)]

    def _rows(self, piece: Piece) -> int:
        return row_count_of(self._shapes[piece.name], piece.rows_last)

    def _width(self, piece: Piece) -> int:
        return width_of(self._shapes[piece.name], piece.rows_last)

    def read(self, i: int, rows: Tensor) -> Tensor:
        """Some ascending rows of a block, `[k, width]`, in the checkpoint's own dtype."""
        parts = []
        for pieces in self._ranges(i):
            held = rows[self.within(pieces[0], rows)] - pieces[0].first
            of_pieces = [rows_of(self.weights.read(piece.name), held, piece.rows_last) for piece in pieces]
            parts.append(torch.cat(of_pieces, dim=1))
        return torch.cat(parts)

    def split(self, i: int, rows: Tensor, values: Tensor) -> list[tuple[Piece, Tensor, Tensor]]:
        """Ascending rows `[k]` and their values `[k, width]` shared out among the block's tensors,
        each with its own numbers of the rows.
        """
        shared = []
        for pieces in self._ranges(i):
            here = self.within(pieces[0], rows)
            widths = [self._width(piece) for piece in pieces]
            for piece, of_piece in zip(pieces, values[here].split(widths, dim=1), strict=True):
                shared.append((piece, rows[here] - piece.first, of_piece))
        return shared

    def within(self, piece: Piece, rows: Tensor) -> Tensor:
        """Which of a block's rows a tensor holds, bool `[k]`."""
        return (rows >= piece.first) & (rows < piece.first + self._rows(piece))


class NamedTensors:
    """The tensors of blocks that are no down-projections, by the blocks' names.

    prefix: of the stack's tensors; family: whose weights may lie the other way round.
    """

    def __init__(self, weights: WeightFiles, prefix: str, family: str) -> None:
        self.weights, self.prefix, self.family = weights, prefix, family

    def pieces_of(self, block: str) -> list[Piece]:
        """The tensors of one block.

        Raises:
            Refusal: none is known to hold it.
        """
        name = f"{self.prefix}{block}"
        for stored, rows_last in ((f"{name}.weight", self.family in CONV1D), (name, self.family in ROWS_LAST)):
            if stored in self.weights.names:
                return [Piece(stored, None, False, False, rows_last)]
        pieces = list(self._experts_apart(layer_of(block)))
        if not pieces or ".experts." not in block:
            raise Refusal(f"{self.weights.folder}: no tensor there is known to hold the rows {block!r}")
        return pieces

    def _experts_apart(self, layer: int) -> Iterator[Piece]:
        """Gate and up of each routed expert; up's rows come after gate's."""
        numbered = re.compile(rf"{re.escape(self.prefix)}{layer}\.(.+\.experts)\.(\d+)\.(\w+)\.weight$")
        parts = {(match[3], int(match[2])): name for name in self.weights.names if (match := numbered.match(name))}
        for gate, up in GATE_AND_UP:
            count = sum(part == gate for part, _ in parts)
            if count and all((part, expert) in parts for part in (gate, up) for expert in range(count)):
                d_ff = self.weights.shape_of(parts[gate, 0])[0]
                for first, part in ((0, gate), (d_ff, up)):
                    for expert in range(count):
                        yield Piece(parts[part, expert], expert, False, False, False, first)


def _stack(weights: WeightFiles, config: dict[str, Any]) -> tuple[str, dict[int, list[Piece]]]:
    """The one stack of layers that has all of the model's, and what its tensors' names begin with.
    A head that predicts further tokens has layers of its own, and so have towers for pictures and
    sound; they are not meant.
    """
    stacks: dict[str, dict[int, list[Piece]]] = {}
    for name in sorted(weights.names):
        if (match := NAME.search(name)) and not OF_OTHER_SENSES.search(name[: match.start("layer")]):
            pieces = stacks.setdefault(name[: match.start("layer")], {}).setdefault(int(match["layer"]), [])
            pieces.append(_piece(name, match, config["model_type"]))
    layers = set(range(next((config[key] for key in LAYER_COUNTS if key in config), 0)))
    exact = [prefix for prefix, stack in stacks.items() if stack.keys() == layers]
    whole = exact or [prefix for prefix, stack in stacks.items() if stack.keys() >= layers]
    if len(whole) > 1:
        raise Refusal(
            f"{weights.folder}: {' and '.join(stacks[prefix][0][0].name for prefix in whole)} could both be layer 0's "
            "W_down; loki-ds trains models with one stack of layers"
        )
    if not stacks:
        return "", {}
    prefix = whole[0] if whole else max(stacks, key=lambda prefix: len(stacks[prefix]))
    by_layer = {layer: stacks[prefix][layer] for layer in sorted(layers if whole else stacks[prefix])}
    return prefix, {layer: _in_order(weights.folder, pieces) for layer, pieces in by_layer.items()}


def _piece(name: str, match: re.Match[str], family: str) -> Piece:
    expert = match["expert"]
    shared = re.search(SHARED_PART, match[0]) is not None
    number, beside = None if expert is None else int(expert), match["beside"] is not None
    return Piece(name, number, shared, beside, family in ROWS_LAST and not shared)


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
    config = config_of(folder)
    return {"model_type": "", **(config.get("text_config") or config)}
