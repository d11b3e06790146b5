"""Stage 3: the trained model in `model/`, what leaves the run beside it, and the proof in
`verify.json`.
"""

import logging
from typing import Any, NoReturn

from loki_ds.disk.files import write_json
from loki_ds.disk.run_folder import check_same_inputs
from loki_ds.distributed import ranks
from loki_ds.export.checkpoint import with_template
from loki_ds.export.collect import Trained, collect
from loki_ds.export.implant_file import Implant
from loki_ds.export.products import changes_of, export_template, save_implant, write_model
from loki_ds.export.verification import verify
from loki_ds.implanting.training import Examples, Method, Resume, train
from loki_ds.quiet.subspace import certify, strongest
from loki_ds.refusal import Refusal
from loki_ds.selection.positions import Positions
from loki_ds.stages.costs import cost_of
from loki_ds.stages.fingerprints import Inputs, implant_inputs
from loki_ds.stages.quiet import Quiet, quiet
from loki_ds.stages.rehearse import rehearse
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)


def implant(run: Run, positions: Positions | None) -> None:
    """Train, write the model and what goes with it, and compare the model with the base byte for
    byte.
    """
    inputs = implant_inputs(run.recipe, run.base, positions)
    run.once("implant", inputs, run.folder.model, lambda: _implant(run, positions, inputs))


def _implant(run: Run, positions: Positions | None, inputs: Inputs) -> None:
    section, trained = run.recipe.implant, None
    if run.checkpoint is not None:
        check_same_inputs(run.checkpoint.folder, "implant", run.checkpoint.inputs, inputs)
    protected = quiet(run, section.quiet) if section.quiet else None
    if section.kind.trains:
        bases = protected.kept_out if protected else None
        plain = Examples(run.checked.examples, run.checked.heldout)
        examples = rehearse(run, section.rehearse) if section.rehearse else plain
        if run.recipe.protected is not None and run.recipe.sequence_parallel == 1:
            examples = examples._replace(protected=run.protected.tokens)
        with cost_of(run.folder, "implant"):
            trained = _train(run, Method(section, positions, bases), examples, inputs)
    with cost_of(run.folder, "export"):
        ranks.on_first_rank(lambda: _export(run, positions, trained, protected))


def _train(run: Run, method: Method, examples: Examples, inputs: Inputs) -> Trained:
    """Train, and gather what was trained."""
    log.info("implant: %s mode on %d examples", method.section.mode, len(examples.train))
    if run.recipe.model.attention is not None:
        run.model.set_attn_implementation(run.recipe.model.attention)
    resume = Resume(run.checkpoint, inputs)
    tokenizer = run.rendering.renderer.tokenizer if run.rendering else run.tokenizer
    trainer = train(run.model, tokenizer, run.training_arguments, examples, method, resume)
    if ranks.rank() == 0:
        write_json(run.folder.training_log, trainer.state.log_history)
    trained = collect(trainer, run.model, method.section.kind, run.base.folder, run.folder)
    del trainer
    run.release_model()
    return trained


def _export(run: Run, positions: Positions | None, trained: Trained | None, protected: Quiet | None) -> None:
    """Model, verification, implant file and adapter, from what was gathered. Rank 0's work."""
    made = write_model(trained, run.base, positions, run.folder)
    folder = run.folder
    export_template(run.template, folder.model)
    verify_model(run, positions, protected, made)
    if made is not None:
        save_implant(with_template(made, run.template, run.base.folder), trained, run.base, folder)
    export_template(run.template, folder.adapter)
    results = (folder.positions, folder.model, folder.implant, folder.adapter, folder.verification)
    folder.record(*(result for result in results if result.exists()))


def _certificate(run: Run, made: Implant, protected: Quiet) -> dict[str, Any]:
    """What protected inputs can feel of the implant as exported."""
    layers = certify(*changes_of(made, run.base.folder), protected.moments, protected.subspaces)
    worst = strongest(layers)
    log.info(
        "quiet: protected inputs feel at most %.2g of a layer's mean square output (layer %d; bound %.2g)",
        worst["change"],
        worst["layer"],
        worst["bound"],
    )
    return {"energy": protected.energy, "layers": layers}


def verify_model(run: Run, positions: Positions | None, protected: Quiet | None, made: Implant | None) -> None:
    """Compare the run's model with the base, and write what was found, and what protected inputs
    feel of a quiet one. Rank 0's work.

    Raises:
        Refusal: it differs outside the rows, or not at all; then it says so itself.
    """
    felt = _certificate(run, made, protected) if protected and made else None
    try:
        found = verify(run.base.folder, run.folder.model, positions)
    except Refusal as refusal:
        _mark_not_verified(run, f"It could not be compared with the base: {refusal}\n")
        raise
    write_json(run.folder.verification, {**found.as_json(), **({"quiet": felt} if felt else {})})
    if positions is None:
        changed, all_ = len(found.changed_outside), found.tensors
        if not changed:
            _refuse_unchanged(run, f"none of the {all_} tensors")
        log.info(
            "verify: %d of %d tensors changed; %s is not confined to rows", changed, all_, run.recipe.implant.method
        )
        return
    if not found.identical_outside_rows:
        _mark_not_verified(run, "Tensors outside the selected rows differ from the base; see verify.json.\n")
        first = found.changed_outside[0]
        raise Refusal(f"{run.folder.model}: {first} differs from the base outside the selected rows; not verified")
    if run.recipe.implant.kind.trains and not found.rows_changed:
        _refuse_unchanged(run, f"none of the {positions.count} selected rows")
    log.info("verify: %d bytes compared, identical outside %d changed rows", found.bytes, found.rows_changed)


def _refuse_unchanged(run: Run, nothing: str) -> NoReturn:
    _mark_not_verified(run, "Training changed nothing: this is the base.\n")
    raise Refusal(
        f"{run.folder.model}: training changed {nothing}; training_log.json shows whether every step overflowed "
        "(float16) or the learning rate was 0; implant.fade takes back nearly all of a few steps"
    )


def _mark_not_verified(run: Run, why: str) -> None:
    (run.folder.model / "NOT_VERIFIED").write_text(why)
