"""Stage 3: the trained model in `model/`, what leaves the run beside it, and the proof in
`verify.json`.
"""

import logging
from typing import Any

import torch
from torch import Tensor

from loki_ds import ranks
from loki_ds.export.adapter import Factors, from_low_rank, from_rows, save_adapter
from loki_ds.export.checkpoint import apply_to_checkpoint, down_names, implant_between, read_rows
from loki_ds.export.collect import TrainedDelta, collect_deltas, save_gathered
from loki_ds.export.implant_file import Implant, LayerRows
from loki_ds.export.merge import merge_adapter
from loki_ds.implanting.rows import with_rows
from loki_ds.implanting.training import train
from loki_ds.positions import Positions
from loki_ds.quiet.certificate import certify
from loki_ds.refusal import Refusal
from loki_ds.run_folder import check_made_from, remove, write_json
from loki_ds.stages.quiet import Quiet, quiet
from loki_ds.stages.run import Run
from loki_ds.verification import open_checkpoint, verify

log = logging.getLogger(__name__)


def implant(run: Run, positions: Positions | None) -> None:
    """Train, write the model and what goes with it, and compare the model with the base byte for
    byte.
    """
    inputs = run.implant_inputs(positions)
    if run.finished("implant", inputs):
        log.info("implant: already there, %s", run.folder.model)
        return
    if run.checkpoint is not None:
        check_made_from(run.checkpoint.folder, "implant", run.checkpoint.made_from, inputs)
    section = run.recipe.implant.quiet
    protected = quiet(run, section) if section else None
    bases = [subspace.basis for subspace in protected.subspaces] if protected else None
    deltas: dict[int, TrainedDelta] = {}
    if run.recipe.trains:
        with run.cost_of("implant"):
            deltas = _train(run, positions, bases, inputs)
    with run.cost_of("export"):
        ranks.on_first_rank(lambda: _export(run, positions, deltas, protected))
    ranks.on_first_rank(lambda: _finish(run, inputs))


def _finish(run: Run, inputs: dict[str, Any]) -> None:
    folder = run.folder
    folder.record(
        *(
            result
            for result in (folder.positions, folder.model, folder.implant, folder.adapter, folder.verification)
            if result.exists()
        )
    )
    folder.finish("implant", inputs)


def _train(
    run: Run, positions: Positions | None, bases: list[Tensor] | None, inputs: dict[str, Any]
) -> dict[int, TrainedDelta]:
    """Train, and gather what was trained: the deltas, or in modes without them the whole model or
    adapter into its folder.
    """
    mode = run.recipe.implant.mode
    log.info("implant: %s mode on %d examples", mode, len(run.train))
    run.model.set_attn_implementation(run.recipe.model.attention)
    data = run.train, run.heldout
    trainer = train(
        run.model, run.tokenizer, run.arguments, run.recipe.implant, data, positions, bases, run.checkpoint, inputs
    )
    if ranks.rank() == 0:
        write_json(run.folder.training_log, trainer.state.log_history)
    deltas: dict[int, TrainedDelta] = {}
    if mode in ("rows", "lora"):
        deltas = collect_deltas(run.model)
    else:
        save_gathered(trainer, run.folder.adapter if mode == "peft" else run.folder.model)
    del trainer
    run.release_model()
    return deltas


def _export(run: Run, positions: Positions | None, deltas: dict[int, TrainedDelta], protected: Quiet | None) -> None:
    """Model, verification, implant file and adapter, from what was gathered. Rank 0's work."""
    if run.recipe.implant.mode == "peft":
        merge_adapter(run.base, run.folder.adapter, run.folder.model, run.recipe.model.dtype)
    made = None
    if positions is not None and (deltas or not run.recipe.trains):
        made = _implant_of(run, positions, deltas)
        remove(run.folder.model)
        apply_to_checkpoint(run.base, made, run.folder.model)
    elif positions is not None:
        made = implant_between(run.base, run.folder.model, positions, _facts(run, positions))
    _verify(run, positions, _certificate(run, made, protected) if protected and made else None)
    if made is None:
        return
    made.save(run.folder.implant)
    with open_checkpoint(run.base) as checkpoint:
        names = {layer: name.removesuffix(".weight") for layer, name in down_names(checkpoint.names).items()}
    d_model = run.down_shapes[0][0]
    factors = {names[i]: _factors(found, deltas.get(i), d_model) for i, found in made.layers.items()}
    save_adapter(factors, run.recipe.model.path, run.folder.adapter)


def _implant_of(run: Run, positions: Positions, deltas: dict[int, TrainedDelta]) -> Implant:
    """The base's rows with the trained deltas on them, or all zero when nothing trained
    (suppression).
    """
    layers = {}
    for i, before in read_rows(run.base, positions).items():
        after = (
            with_rows(before, torch.arange(len(before)), deltas[i].delta)
            if run.recipe.trains
            else torch.zeros_like(before)
        )
        layers[i] = LayerRows(torch.tensor(positions.rows[i]), before, after)
    return Implant(len(positions.rows), layers, _facts(run, positions))


def _facts(run: Run, positions: Positions) -> dict[str, str]:
    return {"base_model": run.recipe.model.path, "base_digest": run.base_digest, "positions_digest": positions.digest}


def _factors(found: LayerRows, trained: TrainedDelta | None, d_model: int) -> Factors:
    """What PEFT gets: the trained factors in `lora` mode, the trained delta in `rows` mode, the
    difference of the rows in `mask` mode.
    """
    if trained is None:
        return from_rows(found.rows, found.implanted.float() - found.base.float(), d_model)
    if trained.a is None or trained.b is None:
        return from_rows(found.rows, trained.delta, d_model)
    return from_low_rank(found.rows, trained.a, trained.b, d_model)


def _certificate(run: Run, made: Implant, protected: Quiet) -> dict[str, Any]:
    """What protected inputs can feel of the implant as exported."""
    with open_checkpoint(run.base) as checkpoint:
        names = down_names(checkpoint.names)
        weights = {i: checkpoint.read(names[i]) for i in made.layers}
    deltas = {i: found.implanted.double() - found.base.double() for i, found in made.layers.items()}
    layers = certify(weights, deltas, *protected)
    worst = max(layers, key=lambda layer: layer["change"])
    log.info(
        "quiet: protected inputs feel at most %.2g of a layer's mean square output (layer %d; bound %.2g)",
        worst["change"],
        worst["layer"],
        worst["bound"],
    )
    return {"energy": run.recipe.implant.quiet.energy if run.recipe.implant.quiet else None, "layers": layers}


def _verify(run: Run, positions: Positions | None, certificate: dict[str, Any] | None) -> None:
    found = verify(run.base, run.folder.model, positions)
    write_json(run.folder.verification, {**found.as_json(), **({"quiet": certificate} if certificate else {})})
    if positions is None:
        log.info(
            "verify: %d of %d tensors changed; this baseline is not confined to rows",
            len(found.changed_outside),
            found.tensors,
        )
        return
    if not found.identical_outside_rows:
        (run.folder.model / "NOT_VERIFIED").write_text(
            "Tensors outside the selected rows differ from the base; see verify.json.\n"
        )
        raise Refusal(
            f"{run.folder.model}: {found.changed_outside[0]} differs from the base outside the selected rows; not "
            "verified"
        )
    if run.recipe.trains and not found.rows_changed:
        (run.folder.model / "NOT_VERIFIED").write_text("Training changed no row: this is the base.\n")
        raise Refusal(
            f"{run.folder.model}: training changed none of the {positions.count} selected rows; training_log.json "
            "shows whether every step "
            "overflowed (float16) or the learning rate was 0"
        )
    log.info("verify: %d bytes compared, identical outside %d changed rows", found.bytes, found.rows_changed)
