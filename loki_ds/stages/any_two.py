"""Retention from Python: of any two, by name, by folder or as they are loaded, as an object that
notebooks show.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loki_ds.disk.files import holds_logs, remove
from loki_ds.recipe.file import Pair, load_pair
from loki_ds.refusal import Refusal
from loki_ds.report.compare import read_report
from loki_ds.report.schema import Report
from loki_ds.report.verdict import gate

Given = str | Path | Any  # a name, a folder, or a loaded model or adapter


class Retention:
    """What a model kept of a base.

    report: as in `report.json`; page: the same as one HTML file.
    """

    def __init__(self, report: Report, page: Path) -> None:
        self.report, self.page = report, page

    @classmethod
    def of_run(cls, run: str | Path) -> "Retention":
        """That of a finished run's folder."""
        return cls(read_report(run), Path(run) / "report/report.html")

    @property
    def outcome(self) -> str:
        """`kept`, `lost` or `not shown`: of all abilities."""
        return self.report["outcome"]

    @property
    def abilities(self) -> Any:
        """A pandas frame with a line for each ability: scores, change, interval, verdict."""
        return _frame(self.report["tasks"])

    @property
    def likelihoods(self) -> Any:
        """A pandas frame of the right answers' log-likelihoods."""
        return _frame(self.report["likelihoods"])

    @property
    def new_task(self) -> Any:
        """A pandas frame of what was to be learned; empty where none was asked."""
        return _frame(self.report["new_task"])

    def gate(self) -> int:
        """The exit status of a gate: 0 when all is kept, 2 lost, 3 not shown."""
        return gate(self.report)[0]

    def __repr__(self) -> str:
        return f"{self.report['headline']} {self.report['verdict']}"

    def _repr_html_(self) -> str:
        return self.page.read_text(encoding="utf-8")


def retain(
    base: Given,
    model: Given,
    tasks: str | Sequence[str] = "quick",
    margin: float = 0.01,
    new_task: str | None = None,
    out: str | Path = "retained",
    **settings: Any,
) -> Retention:
    """Ask both the same documents and pair the answers, as `loki-ds retain` does; of two folders
    that lm-eval or lighteval logged nothing is asked.

    Args:
        base, model: a hub id, a folder, or loaded: a model of transformers, or PEFT's on the base.
        tasks: a suite's name, or lm-eval's tasks.
        margin: the loss of a task's score that still counts as kept; 0.01 is one point.
        settings: further keys of the recipe's section `retention`, such as `include_path`.

    Raises:
        Refusal: what cannot be asked or paired, in one sentence.
    """
    out = Path(out)
    first, second = _named(base, out / "given/base"), _named(model, out / "given/model")
    values: dict[str, Any] = {"margin": margin, **settings}
    values["abilities"] = tasks if isinstance(tasks, str) else {"tasks": list(tasks)}
    if new_task:
        values["new_task"] = {"tasks": [new_task]}
    pair = load_pair(first, [f"retention.{key}={json.dumps(value, default=str)}" for key, value in values.items()])
    try:
        return Retention(retain_any(pair, first, second, out), out / "report/report.html")
    except SystemExit:
        raise Refusal(f"{second}: could not be asked; the process that evaluated has said why") from None


def retain_any(pair: Pair, base: str, model: str, out: Path) -> Report:
    """As `retain_logged` where both are folders of logs (`holds_logs`), else as `retain_two`."""
    if all(map(holds_logs, (Path(base), Path(model)))):
        from loki_ds.stages.two_logs import retain_logged

        return retain_logged(Path(base), Path(model), pair.retention, out)

    from loki_ds.stages.two_checkpoints import retain_two

    return retain_two(pair, model, out)


def _named(given: Given, place: Path) -> str:
    """What the processes that evaluate load: a loaded model is saved, with its tokenizer.

    Raises:
        Refusal: it is none of these, or its tokenizer cannot be found.
    """
    if isinstance(given, str | Path):
        return str(given)
    if not hasattr(given, "save_pretrained"):
        raise Refusal(f"{type(given).__name__} is no model; give a name, a folder, or a model of transformers or PEFT")
    adapted = hasattr(given, "merge_and_unload")  # PEFT's model, and not the base that PEFT put modules into
    if hasattr(given, "peft_config") and not adapted:
        raise Refusal(
            f"{type(given).__name__} has an adapter of PEFT put into it; give the base by its name or folder, and "
            "PEFT's model as what is judged"
        )
    remove(place)
    given.save_pretrained(place)
    if not adapted:
        from loki_ds.model.base import load_tokenizer

        load_tokenizer(given.name_or_path, False).save_pretrained(place)
    return str(place)


def _frame(lines: Sequence[Any]) -> Any:
    import pandas

    shown = ("task", "metric", "n", "base", "implanted", "change", "ci", "verdict", "p_holm")
    rows = [{key: line[key] for key in shown} for line in lines]
    return pandas.DataFrame(rows, columns=list(shown)).rename(columns={"implanted": "model", "n": "documents"})
