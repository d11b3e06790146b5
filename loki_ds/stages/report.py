"""The report on two models' answers: paired, drawn and written, whoever they are."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from loki_ds.disk.files import write_json, written_whole
from loki_ds.disk.run_folder import RunFolder
from loki_ds.recipe.sections import RetentionSection
from loki_ds.refusal import Refusal
from loki_ds.report.build import build_report, write_report
from loki_ds.report.compare import read_report
from loki_ds.report.pictures import retention as draw_retention
from loki_ds.report.schema import Facts, Report
from loki_ds.retention.as_logged import write_logged
from loki_ds.retention.messages import ArmResult
from loki_ds.retention.pairing import pair
from loki_ds.retention.question import Answers
from loki_ds.tasks.loading import TaskFound

ANSWERS = "answers.json"  # beside a report: the names of the files that it was made from
CAPTION = "Retention: change of each task, model minus base."


def report_of_pair(
    name: str,
    results: Sequence[ArmResult],
    section: RetentionSection,
    facts: Facts,
    tasks: Sequence[TaskFound],
    settings_folder: Path,
    pictures: Callable[[Report], dict[str, Path]] = lambda _: {},
    one_tokenizer: bool = True,
) -> None:
    """Pair the base's answers with the model's, and write the report into a folder of its settings.

    tasks: what was asked; pictures: what else the report shows, by captions, drawn once known.
    """
    base, model = results
    write_json(settings_folder / ANSWERS, [Answers.name(each["key"]) for each in results if "key" in each])
    opposites = {task.name: task.opposite for task in tasks if task.opposite}
    report = build_report(name, pair(base, model, one_tokenizer), section, facts, opposites)
    draw_retention(report["tasks"], report["margin"], settings_folder / "retention.png")
    write_report(report, settings_folder / "report", {CAPTION: settings_folder / "retention.png", **pictures(report)})


def folder_for(out: Path) -> RunFolder:
    """The folder of a report that is no run's.

    Raises:
        Refusal: it is one's, whose report would be lost.
    """
    folder = RunFolder(out)
    if folder.recipe.exists():
        raise Refusal(f"{out}: a run's own folder, whose report would be lost; name another (--out)")
    return folder


def put_report(settings_folder: Path, folder: RunFolder) -> Report:
    """The report of some settings in the place of the one last asked for."""
    with written_whole(folder.report) as aside:
        shutil.copytree(settings_folder / "report", aside)
        if (settings_folder / ANSWERS).exists():  # not of a report that an older version made
            shutil.copyfile(settings_folder / ANSWERS, aside / ANSWERS)
    return read_report(folder.root)


def write_samples(run: Path, out: Path) -> list[Path]:
    """The answers behind a report as lm-eval logs them, in `base/` and `model/`.

    Raises:
        Refusal: it is not said which they are, or they are gone.
    """
    folder, report = RunFolder(run), read_report(run)
    named = folder.report / ANSWERS
    names = json.loads(named.read_text(encoding="utf-8")) if named.exists() else []
    if len(names) != 2:
        raise Refusal(f"{named}: does not name the answers of two models; a report on logs has none, else ask again")
    written = []
    for side, name in zip(("base", "model"), names, strict=True):
        file = folder.retention / "answers" / name
        if not file.exists():
            raise Refusal(f"{file}: the {side}'s answers are not there; ask again, and they are kept")
        answers: ArmResult = json.loads(file.read_text(encoding="utf-8"))
        write_logged(answers, f"{report['run']}, {side}", out / side)
        written.append(out / side)
    return written
