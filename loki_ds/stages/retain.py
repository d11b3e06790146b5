"""Stage 4: base and implanted model through the same lm-eval tasks, paired, in `report/`.

Every node that trained evaluates, where all see the run folder; the report is rank 0's work. It can
be asked again, with other tasks or another margin: `retention/` keeps every model's answers by what
determines them, and every report under the settings that made it; `report/` is the last one.
"""

import json
import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from loki_ds.checking.findings import Findings
from loki_ds.checking.prompts import prompts_in_words
from loki_ds.checking.tasks import in_words
from loki_ds.disk.files import weights_digest, write_json
from loki_ds.disk.run_folder import RunFolder
from loki_ds.distributed import device, ranks
from loki_ds.distributed.launcher import local_size
from loki_ds.model.base import max_tokens
from loki_ds.recipe.sections import RetentionSection
from loki_ds.report.build import write_model_card
from loki_ds.report.compare import draw_trade_off, is_read
from loki_ds.report.origin import facts_of_run
from loki_ds.report.pictures import training_curves
from loki_ds.report.schema import Report
from loki_ds.report.trackers import send
from loki_ds.retention.evaluation import Nodes, evaluate, unanswered
from loki_ds.retention.question import Asked, short_digest
from loki_ds.stages.check import Checked
from loki_ds.stages.fingerprints import Fingerprint
from loki_ds.stages.questions import Arms, answers_of_run, node_of_rank
from loki_ds.stages.report import put_report, report_of_pair
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)


def check_retention(run: Run, checked: Checked) -> Findings:
    """Look at the tasks and their prompts, unless their result is there. All ranks call it.

    Raises:
        Refusal: a task that lm-eval does not know, that gives no number per document, that runs
            code and may not, or that cannot be asked as the recipe says.
    """
    section = run.recipe.retention

    def look() -> Findings:  # on one rank: nodes without a shared folder do not all have the result
        if _is_reported(section, run.folder):
            return []
        return in_words(section, run.tasks, run.recipe.tune) + _cut_prompts(section, checked)

    return ranks.on_first_rank(look)


def _is_reported(section: RetentionSection, folder: RunFolder) -> bool:
    """Whether a report is there that was asked for by the same settings."""
    done, asked = folder.inputs_of("retain"), json.loads(json.dumps(section.model_dump(exclude={"processes"})))
    return done is not None and all(done.get(key) == value for key, value in asked.items())


def _cut_prompts(section: RetentionSection, checked: Checked) -> Findings:
    """The tasks of which the model does not see all of a prompt. Rank 0's work."""
    return prompts_in_words(section, checked.trained_tokenizer, max_tokens(checked.config))


@dataclass(frozen=True)
class Questions:
    """What rank 0 tells the other nodes: what both models are asked, and what of it is still to be
    evaluated. settings_folder: where the report with these settings is kept.
    """

    inputs: Fingerprint
    settings_folder: Path
    asked: list[Asked]
    left: list[Asked]


class Share(NamedTuple):
    """What a rank evaluates. questions: None where no other node takes part and it finds them."""

    nodes: Nodes = Nodes()
    questions: Questions | None = None


ALONE = Share()


def share_of_rank(run: Run, checked: Checked) -> Share | None:
    """This rank's share of the evaluation; None for those with nothing to do. All ranks call it.

    The first rank of every node has one, where all see the run folder; with a dial, which comes
    before the questions, the first rank alone.
    """
    alone = ALONE if ranks.rank() == 0 else None
    if run.recipe.tune or not run.shared.by_all or ranks.world_size() == local_size():
        return alone
    nodes, questions = (
        node_of_rank(run.recipe.retention, run.shared),
        ranks.on_first_rank(lambda: _questions(run, checked)),
    )
    if questions is None:
        return alone
    return None if nodes is None else Share(nodes, questions)


def retain(run: Run, checked: Checked, share: Share = ALONE) -> None:
    """Evaluate base and implanted model in processes of their own, pair the documents, write the
    report. For ranks that have a share, without the others.
    """
    questions = share.questions or _questions(run, checked)
    if questions is None:
        log.info("retain: already there, %s", run.folder.report)
        return
    started = time.monotonic()
    evaluate(questions.left, answers_of_run(run.folder), share.nodes)
    if share.nodes.this > 0:
        return
    if questions.left:
        seconds = round(time.monotonic() - started, 1)
        run.folder.note_cost("retain", {"seconds": seconds, "device": device.name()})
    _report(run, checked, questions)


def _questions(run: Run, checked: Checked) -> Questions | None:
    """What is to be evaluated; None where the report is there. Rank 0's work."""
    folder, recipe = run.folder, run.recipe
    inputs = checked.fingerprints.retention(weights_digest(folder.model))
    if folder.made_from("retain", inputs):
        return None
    arms, answers = Arms(checked, folder), answers_of_run(folder)
    question = run.question("confirming" if recipe.tune else None)
    asked = question.of_both(arms.base, arms.model(folder.model), answers)
    settings_folder = folder.retention / short_digest(inputs)
    left = [] if (settings_folder / "report").exists() else unanswered(asked, answers)
    return Questions(inputs, settings_folder, asked, left)


def _report(run: Run, checked: Checked, questions: Questions) -> None:
    """The report of these settings, made unless it is there, in the run's place. Rank 0's work."""
    folder, recipe, settings_folder = run.folder, run.recipe, questions.settings_folder
    if not (settings_folder / "report").exists():
        write_json(settings_folder / "settings.json", recipe.retention.model_dump())
        results = [answers_of_run(folder).read(model.key) for model in questions.asked]
        rewritten = checked.rendering.moved_by_template if checked.rendering else []
        cut = [line for _, line in _cut_prompts(recipe.retention, checked)]
        facts = facts_of_run(recipe, folder, checked.base.digest, rewritten, cut, results[1]["libraries"])
        report_of_pair(
            recipe.run,
            results,
            recipe.retention,
            facts,
            run.tasks,
            settings_folder,
            partial(_pictures, folder, settings_folder),
        )
    report = put_report(settings_folder, folder)
    write_model_card(report, folder.model, checked.base.folder, recipe.model.path)
    send(report, recipe.training.get("report_to"), folder.tracked)
    folder.record(folder.report, folder.model / "README.md")
    folder.finish("retain", questions.inputs)
    log.info("retain: %s", folder.report / "report.html")


def _pictures(folder: RunFolder, settings_folder: Path, report: Report) -> dict[str, Path]:
    """What a run has drawn beside its retention, by captions; not every run has all of it."""
    beside = sorted(other.parents[1] for other in folder.root.parent.glob("*/report/report.json"))
    alike = [other for other in beside if other != folder.root and is_read(other)]
    draw_trade_off(report, alike, settings_folder / "trade_off.png")
    if folder.training_log.exists():
        training_curves(json.loads(folder.training_log.read_text()), folder.training_curves)
    return {
        "Losses alone against skill, with the finished runs beside this one. Right and down is better.": (
            settings_folder / "trade_off.png"
        ),
        "The dial: the trained change at several scales, on the half of the documents that chose.": (
            folder.tune / "curve.png"
        ),
        "Training.": folder.training_curves,
        "Attribution: mean score of every node, and the layers of the highest and lowest 1% of nodes.": folder.heat_map,
        "Stability: rows in common when selected from two halves of the protected prompts.": folder.overlap_curve,
    }
