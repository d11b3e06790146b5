"""What leaves a run, from what training gave: the model's folder, its implant file and its adapter.

Rank 0's work. Reads the base from the disk; loads no model.
"""

from pathlib import Path

import torch
from torch import Tensor

from loki_ds.disk.files import remove
from loki_ds.disk.run_folder import RunFolder
from loki_ds.export.adapter import Adapted, Factors, from_low_rank, from_rows, save_adapter
from loki_ds.export.checkpoint import apply_to_checkpoint, implant_between, put_template, read_rows
from loki_ds.export.collect import Adapter, Deltas, Trained, WeightDelta, Weights
from loki_ds.export.implant_file import Implant, LayerRows
from loki_ds.export.merge import merge_adapter
from loki_ds.model.anatomy import has_experts
from loki_ds.model.base import Base, load_configuration
from loki_ds.model.base_checks import without_data
from loki_ds.model.expert_rows import as_in, with_rows
from loki_ds.model.row_blocks import named_blocks
from loki_ds.model.row_weights import RowBlock, RowWeight
from loki_ds.selection.positions import Positions


def write_model(
    trained: Trained | None,
    base: Base,
    positions: Positions | None,
    folder: RunFolder,
) -> Implant | None:
    """The trained model in `model/`; returns the implant that leads to it, None for a baseline that
    is not confined to rows.

    trained: None where nothing trains and the selected rows are set to zero (suppression).
    """
    match trained:
        case Weights():
            return (
                implant_between(base.folder, trained.folder, positions, facts(base, positions)) if positions else None
            )
        case Adapter():
            merge_adapter(base.folder, trained.folder, folder.model, base.section)
            return None
    if positions is None:
        return None
    implant = implant_of(trained, base, positions)
    remove(folder.model)
    apply_to_checkpoint(base.folder, implant, folder.model)
    return implant


def export_template(template: str | None, folder: Path) -> None:
    """The chat template that trained, if not the base's own, beside a result that is there."""
    if template is not None and folder.exists():
        put_template(template, folder)


def implant_of(trained: Deltas | None, base: Base, positions: Positions) -> Implant:
    """The base's rows with the trained deltas on them, or all zero when nothing trained."""
    layers = {}
    for i, before in read_rows(base.folder, positions).items():
        after = torch.zeros_like(before)
        if trained is not None:
            after = with_rows(before, torch.arange(len(before)), trained.of(i))
        layers[i] = LayerRows(torch.tensor(positions.rows[i]), before, after)
    return Implant(len(positions.rows), layers, facts(base, positions), positions.blocks)


def facts(base: Base, positions: Positions) -> dict[str, str]:
    """What an implant file says of where it comes from."""
    revision = {"base_revision": base.section.revision} if base.section.revision else {}
    return {
        "base_model": base.section.path,
        **revision,
        "base_digest": base.digest,
        "positions_digest": positions.digest,
    }


def save_implant(implant: Implant, trained: Trained | None, base: Base, folder: RunFolder) -> None:
    """The implant file, and the same as an adapter."""
    implant.save(folder.implant)
    deltas = trained.layers if isinstance(trained, Deltas) else {}
    remote = base.section.trust_remote_code
    model = without_data(base.folder, load_configuration(base.folder, remote), remote)
    names = {module: name for name, module in model.named_modules()}
    # Beside experts PEFT takes a module that is called down_proj for one of theirs as they were in
    # transformers 4, so there all weights go by their parameters' names.
    factors, blocks, experts = {}, named_blocks(model, implant.blocks), has_experts(model)
    adapted = [weight for i in implant.layers for weight in blocks[i].weights]
    for i, rows in implant.layers.items():
        block, weights = blocks[i], deltas[i] if i in deltas else _differences(rows, blocks[i])
        for weight, delta in zip(block.weights, weights, strict=True):
            named = Adapted(names[weight.module])
            if experts:
                named = named._replace(parameter=weight.attribute, around=_later(weight, adapted))
            factors[named] = _factors(rows.rows, delta, weight.rows)
    lie_that_way = not experts and blocks[0].weights[0].rows_last
    save_adapter(factors, base.section.path, folder.adapter, lie_that_way, base.section.revision)


def _later(weight: RowWeight, adapted: list[RowWeight]) -> int:
    """How many of the same module's adapted parameters come after this one."""
    order = list(weight.module._parameters)
    own = [order.index(other.attribute) for other in adapted if other.module is weight.module]
    return sum(place > order.index(weight.attribute) for place in own)


def _differences(rows: LayerRows, block: RowBlock) -> list[WeightDelta]:
    """Where no delta trained, the difference of the rows, weight by weight."""
    difference = rows.implanted.float() - rows.base.float()
    return [WeightDelta(as_in(weight.shape, of_weight)) for weight, of_weight in block.split(difference)]


def _factors(rows: Tensor, delta: WeightDelta, count: int) -> Factors:
    """What PEFT gets: the trained factors of a low rank, or a delta on whole rows of `count`."""
    if delta.a is None or delta.b is None:
        return from_rows(rows, delta.delta, count)
    return from_low_rank(rows, delta.a, delta.b, count)
