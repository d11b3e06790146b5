"""Where rows may train: the blocks of a model, found on it as transformers built it.

`down` is the paper's place. `gate_up` are a layer's neurons: row n of every matrix that its FFN
reads by. `attention` are the linear layers of whatever calls itself attention. `all` is all three.
What is not known is refused, never left out.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from torch.nn import Linear, Module
from transformers.pytorch_utils import Conv1D

from loki_ds.model.anatomy import decoder_layers
from loki_ds.model.ffn import ROUTING, site_of
from loki_ds.model.row_weights import RowBlock, RowWeight
from loki_ds.recipe.sections import SelectionSection
from loki_ds.refusal import Refusal
from loki_ds.selection.blocks import DOWN, Block
from loki_ds.selection.positions import Positions

PLACES = (DOWN, "gate_up", "attention")
ATTENTION = ("attn", "attention")  # parts of the names that families give it
READ_BY = ("gate_up_proj", "gate_proj", "up_proj")  # of routed experts
HALVES = 2  # gate and up in one weight


def row_blocks(model: Module, where: str = DOWN) -> list[RowBlock]:
    """A place's blocks, from the bottom to the top.

    Raises:
        Refusal: the model has no such rows, or some that are not known.
    """
    blocks: list[RowBlock] = []
    for i, layer in enumerate(decoder_layers(model)):
        paths = {module: name for name, module in layer.named_modules()}
        if where in ("gate_up", "all"):
            blocks += _neurons(i, layer, paths)
        if where in (DOWN, "all"):
            blocks.append(_down(i, layer))
        if where in ("attention", "all"):
            blocks += [_alone(i, weight, paths) for weight in _attending(layer)]
    if not blocks:
        raise Refusal(f"{type(model).__name__} has no rows of selection.where {where} that loki-ds knows")
    return blocks


def named_blocks(model: Module, names: Sequence[str] | None) -> list[RowBlock]:
    """The blocks of these names, in their order; every layer's down-projections where there are
    none.

    Raises:
        Refusal: the model has no block of a name.
    """
    if names is None:
        return row_blocks(model)
    blocks: dict[str, RowBlock] = {}
    for where in PLACES:
        with suppress(Refusal):  # of a place that nobody may have asked for
            blocks |= {row_block.block.name: row_block for row_block in row_blocks(model, where)}
    if unknown := [name for name in names if name not in blocks]:
        raise Refusal(f"{type(model).__name__} has no rows {unknown[0]!r}; are the positions another model's?")
    return [blocks[name] for name in names]


def chosen_blocks(model: Module, section: SelectionSection) -> list[RowBlock]:
    """The blocks that a recipe chooses rows of: those of its positions file, or of its place.

    Raises:
        Refusal: the model has no such rows, or the file is none.
    """
    if section.positions is not None:
        return named_blocks(model, Positions.load(section.positions).blocks)
    return row_blocks(model, section.where)


def blocks_of(held: Iterable[RowBlock]) -> list[Block]:
    """Names and sizes alone."""
    return [row_block.block for row_block in held]


def _down(i: int, layer: Module) -> RowBlock:
    downs, name = site_of(layer).downs, f"{i}.{DOWN}"
    return RowBlock(Block(name, downs[0].rows, sum(down.width for down in downs), name), downs)


def _neurons(i: int, layer: Module, paths: dict[Module, str]) -> Iterator[RowBlock]:
    """What every FFN of a layer reads by; the rows of a neuron are chosen together."""
    for down in site_of(layer).downs:
        d_ff = _inputs(down)
        reading = list(_of_experts(down) if down.of_experts else _of_dense(down))
        known = [weight for weight in reading if weight.rows in (d_ff, HALVES * d_ff)]
        if not known or len(known) < len(reading):
            unknown = ", ".join(_path(weight, paths) for weight in reading) or "nothing"
            raise Refusal(f"layer {i} has an FFN that reads by unknown parts ({unknown}); take selection.where: down")
        for weight in known:
            name = f"{i}.{_path(weight, paths)}"
            parts = weight.rows // d_ff
            interleaved = parts > 1 and not getattr(weight.module, "is_concatenated", True)
            neurons = f"{i}.{paths[down.module]} neurons"
            yield RowBlock(Block(name, weight.rows, weight.width, neurons, parts, interleaved), [weight])


def _inputs(down: RowWeight) -> int:
    """How many neurons a down-projection reads, of one expert."""
    return down.width // (down.shape[0] if down.of_experts else 1)


def _of_dense(down: RowWeight) -> Iterator[RowWeight]:
    """The linear layers beside a down-projection; of a layer whose FFN is not a module, too."""
    ffn = down.holder[0]
    for name, child in ffn.named_children():
        if isinstance(child, Linear | Conv1D) and child is not down.module and name not in ROUTING:
            yield RowWeight.of_linear(child, (ffn, name))


def _of_experts(down: RowWeight) -> Iterator[RowWeight]:
    """The other matrices of routed experts, all in one."""
    for name in READ_BY:
        if name in down.module._parameters:
            yield down._replace(attribute=name)


def _attending(layer: Module) -> Iterator[RowWeight]:
    for name, child in layer.named_children():
        if any(part in name for part in ATTENTION):
            for holder in child.modules():
                for part, module in holder.named_children():
                    if isinstance(module, Linear | Conv1D):
                        yield RowWeight.of_linear(module, (holder, part))


def _alone(i: int, weight: RowWeight, paths: dict[Module, str]) -> RowBlock:
    """One weight whose rows are chosen apart from all others."""
    name = f"{i}.{_path(weight, paths)}"
    return RowBlock(Block(name, weight.rows, weight.width, name), [weight])


def _path(weight: RowWeight, paths: dict[Module, str]) -> str:
    """Within the layer: a linear layer's name, or a parameter's of experts."""
    path = paths[weight.module]
    return path if weight.attribute == "weight" else f"{path}.{weight.attribute}"
