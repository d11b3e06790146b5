"""Between training and its report, if the recipe has a `tune`: the trained change at several
scales, the one that the budget chooses, and the run's products at that scale.

Every scale is evaluated on one half of the documents, the chosen one in the report on the other: a
winner's score on the documents that chose it is too good. Nothing trains. Rank 0's work, without
the others. What was trained is kept in `tune/`, so that another budget can be asked.
"""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loki_ds.disk.files import remove, write_json
from loki_ds.disk.run_folder import RunFolder
from loki_ds.distributed import device
from loki_ds.export.checkpoint import apply_to_checkpoint, write_tensors
from loki_ds.export.implant_file import Implant
from loki_ds.export.products import export_template
from loki_ds.export.scaled import keep, scaled_adapter, scaled_implant, scaled_tensors
from loki_ds.quiet.kept import load_moments
from loki_ds.recipe.sections import TuneSection
from loki_ds.report.build import build_report
from loki_ds.report.pictures import dial
from loki_ds.retention.evaluation import answered, answered_together
from loki_ds.retention.messages import ArmResult
from loki_ds.retention.pairing import pair
from loki_ds.retention.question import Question
from loki_ds.stages.costs import note_cost
from loki_ds.stages.curve import Place, choose, place_of
from loki_ds.stages.fingerprints import tune_inputs
from loki_ds.stages.implant import verify_model
from loki_ds.stages.questions import (
    answers_in,
    base_answers_beside,
    base_arm,
    choosing_question_of,
    implant_arm,
    model_arm,
)
from loki_ds.stages.quiet import Quiet
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)


class Trained:
    """What training gave, at scale 1: an implant, or a whole model, and the adapter beside it."""

    def __init__(self, folder: RunFolder) -> None:
        self.implant = folder.tune / "trained.safetensors"
        self.model = folder.tune / "trained"
        self.adapter = folder.tune / "trained_adapter"

    def keep(self, folder: RunFolder) -> None:
        keep(folder.implant, self.implant)
        keep(folder.adapter, self.adapter)
        if not self.implant.exists():
            keep(folder.model, self.model)


def tune(run: Run, section: TuneSection) -> None:
    """Measure the curve, choose, and put the chosen scale's products in place.

    Raises:
        Refusal: no scale fits the budget; the curve is kept.
    """
    inputs = tune_inputs(run.recipe, run.folder)
    if run.folder.inputs_of("tune") == json.loads(json.dumps(inputs)):
        log.info("tune: already there, %s", run.folder.tune)
        return
    started, trained = time.monotonic(), Trained(run.folder)
    trained.keep(run.folder)
    question = choosing_question_of(run)
    base = _base_answers(run, question)
    curve = _curve(run, trained, _scales(section), question, base)
    write_json(run.folder.tune / "curve.json", curve)
    chosen = choose(curve, section.budget)
    scale = chosen["scale"]
    places = {f"{place['scale']:g}": place for place in curve}
    dial(places, f"{scale:g}", run.folder.tune / "curve.png")
    log.info("tune: scale %g, losses alone %.2g%% on the half that chose", scale, chosen["losses_only"])
    _put_in_place(run, trained, scale)
    write_json(run.folder.tune / "chosen.json", chosen)
    note_cost(run.folder, "tune", {"seconds": round(time.monotonic() - started, 1), "device": device.name()})
    run.folder.finish("tune", inputs)


def _scales(section: TuneSection) -> list[float]:
    """Those of the recipe, and the whole change, whose skill a budget may be a share of."""
    asked = list(section.scales)
    return asked if 1 in asked or section.budget.skill is None else [*asked, 1]


# --- the curve ------------------------------------------------------------------------------------


def _base_answers(run: Run, question: Question) -> ArmResult:
    own, beside, arm = answers_in(run), base_answers_beside(run), base_arm(run)
    key = question.key(arm)
    if not own.at_hand(key, beside):
        log.info("tune: evaluating the base")
        answered(own, question, arm)
        own.publish_to(beside, key)
    return own.read(key)


def _curve(run: Run, trained: Trained, scales: Sequence[float], question: Question, base: ArmResult) -> list[Place]:
    """Rows are put into one loaded base, scale by scale; of a whole model every scale is one."""
    log.info("tune: evaluating %s", ", ".join(f"scale {scale:g}" for scale in scales))
    in_place = trained.implant.exists() and run.recipe.retention.backend == "hf"
    found = (_rows_answered if in_place else _models_answered)(run, trained, scales, question)
    nothing: Any = {}
    return [
        place_of(scale, build_report(f"{scale:g}", pair(base, one), run.recipe.retention, nothing))
        for scale, one in zip(scales, found, strict=True)
    ]


def _rows_answered(run: Run, trained: Trained, scales: Sequence[float], question: Question) -> list[ArmResult]:
    whole, files = Implant.load(trained.implant), [run.folder.tune / f"scale={scale:g}.safetensors" for scale in scales]
    for scale, file in zip(scales, files, strict=True):
        scaled_implant(whole, scale).save(file)
    found = answered_together(answers_in(run), question, [implant_arm(run, file) for file in files])
    for file in files:
        file.unlink()
    return found


def _models_answered(run: Run, trained: Trained, scales: Sequence[float], question: Question) -> list[ArmResult]:
    found, folder = [], run.folder.tune / "scaled"
    for scale in scales:
        remove(folder)
        _write_model(run, trained, scale, folder)
        found.append(answered(answers_in(run), question, model_arm(run, folder)))
    remove(folder)
    return found


# --- the products ---------------------------------------------------------------------------------


def _write_model(run: Run, trained: Trained, scale: float, out: Path) -> Implant | None:
    """The model at a scale; returns its implant, None for a baseline."""
    made = None
    if trained.implant.exists():
        made = scaled_implant(Implant.load(trained.implant), scale)
        apply_to_checkpoint(run.base.folder, made, out)
    else:
        write_tensors(run.base.folder, scaled_tensors(run.base.folder, trained.model, scale), out)
    export_template(run.template, out)
    return made


def _put_in_place(run: Run, trained: Trained, scale: float) -> None:
    """Model, implant, adapter, verification."""
    folder, aside = run.folder, run.folder.tune / "chosen"
    remove(aside)
    made, positions = _write_model(run, trained, scale, aside), None
    remove(folder.model)
    aside.rename(folder.model)
    if made is not None:
        made.save(folder.implant)
        positions = made.positions
    _write_adapter(run, trained, scale)
    verify_model(run, positions, _quiet(run), made)
    results = (folder.model, folder.implant, folder.adapter, folder.verification)
    folder.record(*(result for result in results if result.exists()))


def _write_adapter(run: Run, trained: Trained, scale: float) -> None:
    """The adapter at the scale; none where the method's is no product of two factors (DoRA's,
    PiSSA's), which only the whole change has.
    """
    remove(run.folder.adapter)
    if not trained.adapter.exists():
        return
    if run.recipe.changes_rows or run.recipe.implant.method == "lora" or scale == 1:
        scaled_adapter(trained.adapter, scale, run.folder.adapter)
        export_template(run.template, run.folder.adapter)
    else:
        log.info("tune: no adapter, one of %s cannot be scaled", run.recipe.implant.method)


def _quiet(run: Run) -> Quiet | None:
    """What the delta was kept out of, from the run folder."""
    section = run.recipe.implant.quiet
    return Quiet.of(load_moments(run.folder.quiet / "moments.safetensors"), section) if section else None
