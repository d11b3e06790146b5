"""Stage 3: the trained model in `model/`, what leaves beside it, and the proof in `verify.json`."""

import logging
from typing import NoReturn

from loki_ds.disk.files import write_json
from loki_ds.disk.run_folder import RunFolder, check_same_inputs
from loki_ds.distributed import ranks
from loki_ds.distributed.zero.gathering import release_engine
from loki_ds.export.checkpoint import with_template
from loki_ds.export.collect import Trained, collect
from loki_ds.export.products import export_template, save_implant, write_model
from loki_ds.export.verification import verify
from loki_ds.implanting.training import Examples, Method, Resume, train
from loki_ds.model.base import Base
from loki_ds.recipe.implant import ImplantSection
from loki_ds.refusal import Refusal
from loki_ds.selection.positions import Positions
from loki_ds.stages.check import Checked
from loki_ds.stages.costs import cost_of
from loki_ds.stages.fingerprints import Fingerprint
from loki_ds.stages.rehearse import rehearse
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)


def implant(run: Run, checked: Checked, positions: Positions | None) -> None:
    """Train, write the model and what goes with it, and compare it with the base byte for byte."""
    inputs = checked.fingerprints.implant(positions)
    run.once("implant", inputs, lambda: _implant(run, checked, positions, inputs))


def _implant(run: Run, checked: Checked, positions: Positions | None, inputs: Fingerprint) -> None:
    section, folder = run.recipe.implant, run.folder
    if checked.checkpoint is not None:
        check_same_inputs(checked.checkpoint.folder, "implant", checked.checkpoint.inputs, inputs)
    trained = None
    if section.kind.trains:
        rehearsal = section.rehearse
        examples = rehearse(run, checked, rehearsal) if rehearsal else Examples(checked.examples, checked.heldout)
        with cost_of(folder, "implant"):
            trained = _train(run, checked, Method(section, positions), examples, Resume(checked.checkpoint, inputs))
    with cost_of(folder, "export"):
        ranks.on_first_rank(lambda: _export(folder, section, checked, positions, trained))


def _train(run: Run, checked: Checked, method: Method, examples: Examples, resume: Resume) -> Trained:
    """Train, and gather what was trained."""
    log.info("implant: %s mode on %d examples", method.section.mode, len(examples.train))
    model, attention = run.model(checked.base), run.recipe.model.attention
    if attention is not None:
        model.set_attn_implementation(attention)
    trainer = train(model, checked.trained_tokenizer, checked.arguments, examples, method, resume)
    if ranks.rank() == 0:
        write_json(run.folder.training_log, trainer.state.log_history)
    trained = collect(trainer, model, method.section.kind, method.positions, checked.base.folder, run.folder)
    release_engine(trainer.accelerator)
    del trainer, model
    run.release_model()
    return trained


def _export(
    folder: RunFolder, section: ImplantSection, checked: Checked, positions: Positions | None, trained: Trained | None
) -> None:
    """Model, verification, implant file and adapter, from what was gathered. Rank 0's work."""
    base, template = checked.base, checked.template
    implant = write_model(trained, base, positions, folder)
    export_template(template, folder.model)
    verify_model(folder, base, section, positions)
    if implant is not None:
        save_implant(with_template(implant, template, base.folder), trained, base, folder)
    export_template(template, folder.adapter)
    folder.record(*(result for result in folder.products if result.exists()))


def verify_model(folder: RunFolder, base: Base, section: ImplantSection, positions: Positions | None) -> None:
    """Compare the run's model with the base, and write what was found. Rank 0's work.

    Raises:
        Refusal: it differs outside the rows, or not at all; then it says so itself.
    """
    try:
        verification = verify(base.folder, folder.model, positions)
    except Refusal as refusal:
        _mark_not_verified(folder, f"It could not be compared with the base: {refusal}\n")
        raise
    write_json(folder.verification, verification.as_json())
    outside, tensors = verification.changed_outside, verification.tensors
    if positions is None:
        if not outside:
            _refuse_unchanged(folder, f"none of the {tensors} tensors")
        log.info("verify: %d of %d tensors changed; %s is not confined to rows", len(outside), tensors, section.method)
        return
    if outside:
        _mark_not_verified(folder, "Tensors outside the selected rows differ from the base; see verify.json.\n")
        raise Refusal(f"{folder.model}: {outside[0]} differs from the base outside the selected rows; not verified")
    if section.kind.trains and not verification.rows_changed:
        _refuse_unchanged(folder, f"none of the {positions.count} selected rows")
    same, changed = verification.bytes, verification.rows_changed
    log.info("verify: %d bytes compared, identical outside %d changed rows", same, changed)


def _refuse_unchanged(folder: RunFolder, nothing: str) -> NoReturn:
    _mark_not_verified(folder, "Training changed nothing: this is the base.\n")
    raise Refusal(
        f"{folder.model}: training changed {nothing}; training_log.json shows whether every step overflowed "
        "(float16) or the learning rate was 0; implant.fade takes back nearly all of a few steps"
    )


def _mark_not_verified(folder: RunFolder, why: str) -> None:
    (folder.model / "NOT_VERIFIED").write_text(why)
