"""What rows are chosen from: blocks of rows by their names and sizes.

A block is one layer's down-projections side by side (`3.down`), or one weight of another layer
(`3.mlp.gate_proj`, `3.self_attn.q_proj`).
"""

from collections.abc import Iterable
from typing import NamedTuple

DOWN_PROJECTIONS, GATE_AND_UP, ATTENTION = "down-projections", "gate and up projections", "attention"
DOWN = "down"  # the last part of the name of a layer's down-projections


class Block(NamedTuple):
    """A block of `rows` rows of `width` numbers each.

    choice: blocks that have it in common hold rows that are chosen together, as a neuron's of gate
    and up. parts: how many rows of this block one choice takes, more than 1 where gate and up are
    one weight: one from each half, or where they are interleaved one after the other.
    """

    name: str
    rows: int
    width: int
    choice: str
    parts: int = 1
    interleaved: bool = False

    @property
    def layer(self) -> int:
        return layer_of(self.name)

    @property
    def choices(self) -> int:
        """How many can be chosen."""
        return self.rows // self.parts

    def rows_of(self, chosen: list[int]) -> list[int]:
        """The rows of this block that some choices take, ascending."""
        if self.interleaved:
            return sorted(self.parts * number + part for number in chosen for part in range(self.parts))
        return sorted(self.choices * part + number for number in chosen for part in range(self.parts))


def layer_of(name: str) -> int:
    """The number of the layer that a block of this name is in."""
    return int(name.partition(".")[0])


def in_words(name: str) -> str:
    """What a message calls a block: `layer 3`, or a name of its own."""
    return f"layer {layer_of(name)}" if name.endswith(f".{DOWN}") else name


def place_in_words(names: Iterable[str]) -> str:
    """Where the blocks of these names lie."""
    places = {_place(name) for name in names}
    return ", ".join(said for said in (DOWN_PROJECTIONS, GATE_AND_UP, ATTENTION) if said in places)


def _place(name: str) -> str:
    if name.endswith(f".{DOWN}"):
        return DOWN_PROJECTIONS
    return ATTENTION if "att" in name.split(".")[1] else GATE_AND_UP


def down_names(layers: int) -> tuple[str, ...]:
    """The blocks of the paper: every layer's down-projections."""
    return tuple(f"{layer}.{DOWN}" for layer in range(layers))
