"""Retention of any two checkpoints, or of a PEFT adapter on a base: a run's last stage by itself.

The folder is one of a run that only retained, so that `report` and `compare` read it.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from loki_ds.checking.prompts import prompts_in_words
from loki_ds.disk.files import digest_of, weights_digest
from loki_ds.distributed import device
from loki_ds.model.adapters import CONFIG, check_adapter
from loki_ds.model.base import check_padding, load_configuration, load_tokenizer, locate_model, max_tokens
from loki_ds.model.base_checks import check_whole
from loki_ds.model.files import open_weights
from loki_ds.recipe.file import Pair
from loki_ds.recipe.sections import DTYPES, ModelSection
from loki_ds.recipe.shipped import written_out
from loki_ds.refusal import Refusal
from loki_ds.report.build import settings_in_words
from loki_ds.report.schema import Facts, Report
from loki_ds.retention.evaluation import answers_of
from loki_ds.retention.messages import ArmResult
from loki_ds.retention.question import Answers, Arm, Question, model_digest, short_digest, tasks_of
from loki_ds.stages.report import folder_for, put_report, report_of_pair


def retain_two(pair: Pair, model: str, out: Path) -> Report:
    """Evaluate both, pair their documents, write the report; what was answered is not asked again.

    model: a folder, a hub id, or the folder of a PEFT adapter.

    Raises:
        Refusal: a model that cannot be read, or a task that cannot be paired.
    """
    section, folder = pair.retention, folder_for(out)
    pair = _in_its_dtype(pair)
    base = _checkpoint(pair.model)
    second = _second(pair, model, base)
    question = Question(pair.model, section, tasks_of(section))
    with folder.lock():
        cut = _cut(pair, base)  # before anything is asked: it refuses what the evaluation could not do
        started, answers = time.monotonic(), Answers(folder.retention / "answers")
        asked = question.of_both(base, second, answers)
        results = answers_of(asked, answers)
        seconds = round(time.monotonic() - started, 1)
        settings_folder = folder.retention / short_digest(
            {"section": section.model_dump(), "keys": [model.key for model in asked]}
        )
        facts = _facts(pair, model, [base, second], results, seconds, cut)
        report_of_pair(str(out), results, section, facts, question.tasks, settings_folder, one_tokenizer=False)
        return put_report(settings_folder, folder)


def _in_its_dtype(pair: Pair) -> Pair:
    """With the dtype that most of the base's numbers are stored in, where none is given."""
    if "dtype" in pair.model.model_fields_set:
        return pair
    with open_weights(locate_model(pair.model)) as weights:
        numbers: Counter[str] = Counter()
        for name in weights.names:
            numbers[str(weights.dtype_of(name)).removeprefix("torch.")] += math.prod(weights.shape_of(name))
    stored = max(DTYPES, key=numbers.__getitem__)
    return pair.model_copy(update={"model": pair.model.model_copy(update={"dtype": stored})})


def _checkpoint(section: ModelSection) -> Arm:
    folder = locate_model(section)
    check_whole(folder, load_configuration(folder, section.trust_remote_code), section.trust_remote_code)
    return Arm(folder, model_digest(folder, weights_digest(folder)))


def _second(pair: Pair, model: str, base: Arm) -> Arm:
    try:
        folder = Path(written_out(model))
    except ValueError as error:
        raise Refusal(str(error)) from None
    weights = {file.name for file in folder.glob("*.safetensors")} - {"adapter_model.safetensors"}
    if (folder / CONFIG).exists() and not weights:  # a configuration may lie beside it
        check_adapter(folder)
        return Arm(base.folder, f"{base.digest} {digest_of(*sorted(folder.glob('adapter_*')))}", adapter=folder)
    if folder.is_dir() and not (folder / "config.json").exists():
        raise Refusal(f"{folder}: neither a model (config.json) nor a PEFT adapter ({CONFIG})")
    return _checkpoint(
        ModelSection(path=str(folder), dtype=pair.model.dtype, trust_remote_code=pair.model.trust_remote_code)
    )


def _facts(
    pair: Pair, model: str, arms: Sequence[Arm], results: Sequence[ArmResult], seconds: float, cut: list[str]
) -> Facts:
    """cut: as `_cut`."""
    base, second = arms
    same = results[0]["tokenizer"] == results[1]["tokenizer"]
    return {
        "base_digest": base.digest,
        "changes_rows": False,
        "mode": "adapter" if second.adapter else "checkpoint",
        "selection": None,
        "verification": None,
        "costs": {"retain": {"seconds": seconds, "device": device.name()}},
        "origin": {
            **_made_for(second),
            "base model": f"{pair.model.named} (SHA-256 of weights {base.digest[:16]})",
            "second model": f"{model} (SHA-256 of weights {second.digest.split()[-1][:16]})",
            "tokenizers and chat templates": "the same" if same else "they differ; each model read its own tokens",
        },
        "settings": settings_in_words(pair.retention, pair.model.dtype, results[0]["libraries"], cut),
    }


def _made_for(second: Arm) -> dict[str, str]:
    """The base that an adapter says it was trained on; another of the same shape takes it, too."""
    if second.adapter is None:
        return {}
    config = json.loads((second.adapter / CONFIG).read_text(encoding="utf-8"))
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    return {"the adapter says it was trained on": f"{named} {revision or ''}".strip()} if named else {}


def _cut(pair: Pair, base: Arm) -> list[str]:
    """The tasks of which the base does not see all of a prompt."""
    trusted = pair.model.trust_remote_code
    tokenizer, config = load_tokenizer(base.folder, trusted), load_configuration(base.folder, trusted)
    check_padding(tokenizer, config, base.folder)
    return [line for _, line in prompts_in_words(pair.retention, tokenizer, max_tokens(config))]
