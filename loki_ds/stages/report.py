"""The report on two models' answers: paired, drawn and written, whoever they are."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from loki_ds.disk.files import written_whole
from loki_ds.disk.run_folder import RunFolder
from loki_ds.recipe.sections import RetentionSection
from loki_ds.refusal import Refusal
from loki_ds.report.build import build_report, write_report
from loki_ds.report.compare import read_report
from loki_ds.report.pictures import retention as draw_retention
from loki_ds.report.schema import Facts, Report
from loki_ds.retention.messages import ArmResult
from loki_ds.retention.pairing import pair
from loki_ds.tasks.loading import TaskFound

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
    return read_report(folder.root)
