"""Retention of any two checkpoints, or of a PEFT adapter on a base: what the last stage of a run
does, without a run.

The folder is one of a run that only retained, so that `report` and `compare` read it.
"""

import time
from pathlib import Path

from loki_ds.disk.files import digest_of, weights_digest
from loki_ds.disk.run_folder import RunFolder
from loki_ds.distributed import device
from loki_ds.model.base import locate_model
from loki_ds.recipe.file import Pair
from loki_ds.recipe.sections import ModelSection
from loki_ds.refusal import Refusal
from loki_ds.report.build import build_report, settings_in_words, write_report
from loki_ds.report.pictures import retention as draw_retention
from loki_ds.report.schema import Facts, Report
from loki_ds.retention.evaluation import answered
from loki_ds.retention.messages import ArmResult
from loki_ds.retention.pairing import pair as paired
from loki_ds.retention.question import Answers, Arm, Question, check_backend, model_digest
from loki_ds.tasks.loading import look_at_tasks

ADAPTER = "adapter_config.json"


def retain_two(pair: Pair, model: str, out: Path) -> Report:
    """Evaluate both, pair their documents, write the report; documents answered before are not
    asked again.

    model: a folder, a hub id, or the folder of a PEFT adapter.

    Raises:
        Refusal: a model that cannot be read, or a task that cannot be paired.
    """
    section, folder = pair.retention, RunFolder(out)
    if folder.recipe.exists():
        raise Refusal(f"{out}: a run's own folder, whose report would be lost; name another (--out)")
    check_backend(section)
    base = locate_model(pair.model)
    arms = [Arm(base, model_digest(base, weights_digest(base))), _second(pair, model, base)]
    names = [name for group in section.groups for name in group.tasks]
    found = look_at_tasks(names, section.include_path, section.allow_code_execution, "retention")
    question = Question(section, found, pair.model.dtype, pair.model.trust_remote_code)
    with folder.lock():
        started = time.monotonic()
        kept = Answers(folder.retention / "answers")
        of_base = kept.kept(question.key(arms[0]))
        answers = [answered(kept, question, arms[0]), answered(kept, question, arms[1], of_base)]
        seconds = round(time.monotonic() - started, 1)
        tasks = paired(answers[0], answers[1], one_tokenizer=False)
        report = build_report(str(out), tasks, section, _facts(pair, model, arms, answers, seconds))
        draw_retention(report["tasks"], report["margin"], folder.retention / "retention.png")
        caption = "Retention: change of each task, second model minus base."
        write_report(report, folder.report, {caption: folder.retention / "retention.png"})
    return report


def _second(pair: Pair, model: str, base: Path) -> Arm:
    folder = Path(model)
    weights = {file.name for file in folder.glob("*.safetensors")} - {"adapter_model.safetensors"}
    if (folder / ADAPTER).exists() and not weights:  # a configuration may lie beside it
        if pair.retention.backend != "hf":
            raise Refusal(f"retention.backend is {pair.retention.backend}, allowed for an adapter is hf")
        digest = f"{model_digest(base, weights_digest(base))} {digest_of(*sorted(folder.glob('adapter_*')))}"
        return Arm(base, digest, adapter=folder)
    if folder.is_dir() and not (folder / "config.json").exists():
        raise Refusal(f"{folder}: neither a model (config.json) nor a PEFT adapter ({ADAPTER})")
    section = ModelSection(path=model, dtype=pair.model.dtype, trust_remote_code=pair.model.trust_remote_code)
    folder = locate_model(section)
    return Arm(folder, model_digest(folder, weights_digest(folder)))


def _facts(pair: Pair, model: str, arms: list[Arm], answers: list[ArmResult], seconds: float) -> Facts:
    same = answers[0]["tokenizer"] == answers[1]["tokenizer"]
    return {
        "base_digest": arms[0].digest,
        "changes_rows": False,
        "mode": "adapter" if arms[1].adapter else "checkpoint",
        "selection": None,
        "verification": None,
        "costs": {"retain": {"seconds": seconds, "device": device.name()}},
        "origin": {
            "base model": f"{pair.model.path} (SHA-256 of weights {arms[0].digest[:16]})",
            "second model": f"{model} (SHA-256 of weights {arms[1].digest.split()[-1][:16]})",
            "tokenizers and chat templates": "the same" if same else "they differ; each model read its own tokens",
        },
        "settings": settings_in_words(pair.retention, pair.model.dtype, answers[0]["libraries"]),
    }
