"""Between training and its report, if the recipe has a `tune`: the trained change at several
scales, the one that the budget chooses, and the run's products at that scale.

Every scale is evaluated on one half of the documents, the chosen one in the report on the other: a
winner's score on the documents that chose it is too good. Nothing trains. What was trained is kept
in `tune/`, so that another budget can be asked.
"""

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
from loki_ds.recipe.implant import ImplantSection
from loki_ds.recipe.sections import RetentionSection, TuneSection
from loki_ds.report.build import build_report
from loki_ds.report.pictures import dial
from loki_ds.retention.evaluation import answers_of
from loki_ds.retention.messages import ArmResult
from loki_ds.retention.pairing import pair
from loki_ds.retention.question import Answers, Question
from loki_ds.stages.check import Checked
from loki_ds.stages.curve import Point, choose, point_of, said_of
from loki_ds.stages.implant import verify_model
from loki_ds.stages.questions import Arms, answers_of_run
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)


class Trained:
    """What training gave, at scale 1: an implant, or a whole model, and the adapter beside it.

    base: its folder; template: the chat template that leaves with a model, if not the base's own.
    """

    def __init__(self, folder: RunFolder, base: Path, template: str | None) -> None:
        self.implant = folder.tune / "trained.safetensors"
        self.model = folder.tune / "trained"
        self.adapter = folder.tune / "trained_adapter"
        self.base, self.template = base, template
        keep(folder.implant, self.implant)
        keep(folder.adapter, self.adapter)
        if not self.implant.exists():
            keep(folder.model, self.model)

    def write_model(self, scale: float, out: Path) -> Implant | None:
        """The model at a scale; returns its implant, None for a baseline."""
        implant = None
        if self.implant.exists():
            implant = scaled_implant(Implant.load(self.implant), scale)
            apply_to_checkpoint(self.base, implant, out)
        else:
            write_tensors(self.base, scaled_tensors(self.base, self.model, scale), out)
        export_template(self.template, out)
        return implant

    def write_adapter(self, section: ImplantSection, scale: float, out: Path) -> None:
        """The adapter at a scale; none where the method's is no product of two factors (DoRA's,
        PiSSA's), which only the whole change has.
        """
        remove(out)
        if not self.adapter.exists():
            return
        if section.kind.confined or section.method == "lora" or scale == 1:
            scaled_adapter(self.adapter, scale, out)
            export_template(self.template, out)
        else:
            log.info("tune: no adapter, one of %s cannot be scaled", section.method)


def tune(run: Run, checked: Checked) -> None:
    """Measure the curve, choose, and put the chosen scale's products in place, if the recipe has a
    dial. Rank 0's work, without the others.

    Raises:
        Refusal: no scale fits the budget; the curve is kept.
    """
    folder, recipe, section = run.folder, run.recipe, run.recipe.tune
    if section is None:
        return
    inputs = checked.fingerprints.tune(folder.inputs_of("implant"))
    if folder.made_from("tune", inputs):
        log.info("tune: already there, %s", folder.tune)
        return
    started, trained = time.monotonic(), Trained(folder, checked.base.folder, checked.template)
    scales = _scales(section)
    log.info("tune: evaluating %s", ", ".join(f"scale {scale:g}" for scale in scales))
    question, arms, answers = run.question("choosing"), Arms(checked, folder), answers_of_run(folder)
    (base,) = answers_of([question.of_base(arms.base)], answers)
    in_place = trained.implant.exists()
    ask = _rows_answered if in_place else _models_answered
    curve = _curve(scales, base, ask(trained, folder.tune, scales, arms, question, answers), recipe.retention)
    write_json(folder.tune / "curve.json", curve)
    for point in curve:
        log.info("tune: %s", said_of(point))
    chosen = choose(curve, section.budget, section.scales)
    places = {f"{point['scale']:g}": point for point in curve}
    dial(places, f"{chosen['scale']:g}", folder.tune / "curve.png")
    log.info("tune: chosen on half of the documents is %s", said_of(chosen))
    _put_in_place(folder, checked, recipe.implant, trained, chosen["scale"])
    write_json(folder.tune / "chosen.json", chosen)
    folder.note_cost("tune", {"seconds": round(time.monotonic() - started, 1), "device": device.name()})
    folder.finish("tune", inputs)


def _scales(section: TuneSection) -> list[float]:
    """Those of the recipe, and the whole change, whose skill a budget is a share of."""
    return [*section.scales, *([] if 1 in section.scales else [1])]


def _curve(
    scales: Sequence[float], base: ArmResult, results: Sequence[ArmResult], section: RetentionSection
) -> list[Point]:
    nothing: Any = {}
    return [
        point_of(scale, build_report(f"{scale:g}", pair(base, result), section, nothing))
        for scale, result in zip(scales, results, strict=True)
    ]


def _rows_answered(
    trained: Trained, folder: Path, scales: Sequence[float], arms: Arms, question: Question, answers: Answers
) -> list[ArmResult]:
    """Rows are put into one loaded base, scale by scale."""
    whole, files = Implant.load(trained.implant), [folder / f"scale={scale:g}.safetensors" for scale in scales]
    for scale, file in zip(scales, files, strict=True):
        scaled_implant(whole, scale).save(file)
    results = answers_of([question.of(arms.implanted(file)) for file in files], answers)
    for file in files:
        file.unlink()
    return results


def _models_answered(
    trained: Trained, folder: Path, scales: Sequence[float], arms: Arms, question: Question, answers: Answers
) -> list[ArmResult]:
    """The answers of a whole model at every scale, each written in full and deleted again."""
    results, scaled = [], folder / "scaled"
    for scale in scales:
        remove(scaled)
        trained.write_model(scale, scaled)
        results += answers_of([question.of(arms.model(scaled))], answers)
    remove(scaled)
    return results


def _put_in_place(folder: RunFolder, checked: Checked, section: ImplantSection, trained: Trained, scale: float) -> None:
    """Model, implant, adapter and verification at the chosen scale."""
    aside, base = folder.tune / "chosen", checked.base
    remove(aside)
    implant = trained.write_model(scale, aside)
    remove(folder.model)
    aside.rename(folder.model)
    if implant is not None:
        implant.save(folder.implant)
    trained.write_adapter(section, scale, folder.adapter)
    verify_model(folder, base, section, implant.positions if implant else None)
    folder.record(*(result for result in folder.products if result.exists()))
