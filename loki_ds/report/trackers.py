"""Retention's figures where people look: in the trackers of `training.report_to`, as one point."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from loki_ds.refusal import short
from loki_ds.report.schema import Report

log = logging.getLogger(__name__)


def send(report: Report, names: str | Sequence[str] | None, folder: Path) -> None:
    """Send a report's figures, and say of each tracker whether it took them.

    names: as `training.report_to` has them; folder: for those that write on the disk.
    """
    figures = dict(figures_of(report))
    for name in _wanted(names):
        if name not in LOGGER_TYPE_TO_CLASS:
            log.info("retain: %s has the training's figures alone, retention's stand in the report", name)
            continue
        kind = LOGGER_TYPE_TO_CLASS[name]
        where = {"logging_dir": folder} if kind.requires_logging_directory else {}
        try:  # a tracker's own trouble, such as a key that is missing, costs no report
            tracker = kind(f"{Path(report['run']).name} retention", **where)
            tracker.start()
            tracker.log(figures, step=0)
            tracker.finish()
        except Exception as error:  # noqa: BLE001
            log.warning("retain: %s did not take retention's figures: %s", name, short(error, 300))
        else:
            log.info("retain: %d figures sent to %s", len(figures), name)


def figures_of(report: Report) -> Iterator[tuple[str, float]]:
    """Names and values: losses alone, and of every task base, model and change."""
    for name in ("losses_only", "forgetting"):
        value = report[name]
        if value is not None:
            yield f"retention/{name}", value
    for line in (*report["tasks"], *report["new_task"]):
        name = f"retention/{line['task']}/{line['metric']}"
        yield f"{name}/base", line["base"]
        yield f"{name}/model", line["implanted"]
        yield f"{name}/change", line["change"]
    for decision in report["decisions"]:
        yield f"retention/{decision['acts']} and {decision['refrains']}/balanced", decision["implanted"]


def _wanted(names: str | Sequence[str] | None) -> list[str]:
    given = [names] if isinstance(names, str) else list(names or [])
    if "all" in given:
        return [str(tracker) for tracker in get_available_trackers()]
    return [name for name in given if name != "none"]
