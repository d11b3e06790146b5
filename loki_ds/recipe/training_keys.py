"""A recipe's keys: which ones `training:` has, which change no result, and which are secret.

`training:` takes the fields of TRL's `SFTConfig` that other sections do not set. Their names come
from the libraries' source: importing TRL takes seconds, and a misspelled key fails at once.
"""

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loki_ds.refusal import did_you_mean

# `SFTConfig` and the classes it inherits from, each in its package's file.
CLASSES = (
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("trl", "trainer/sft_config.py", "SFTConfig"),
)
# Keys that loki-ds does something of its own with, and what for; of all others only TRL knows.
RESERVED = {  # follow from the rest of the recipe
    "output_dir": "the run folder",
    "deepspeed": "the recipe's own key 'deepspeed'",
    "model_init_kwargs": "the section 'model'",
    "parallelism_config": "the recipe's own key 'deepspeed'",
    "trust_remote_code": "model.trust_remote_code",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "use_cpu": "the device that is there",
    "dataset_text_field": "the section 'data'",
    "dataset_kwargs": "the section 'data'",
    "shuffle_dataset": "the section 'data'",
    "resume_from_checkpoint": "the run folder, whose newest checkpoint a run goes on from",
    "do_train": "implant.mode",
    "do_eval": "training.eval_strategy",
    "do_predict": "retention",
}
ELSEWHERE = {  # may be off; otherwise the sentence says where it is done
    "fsdp": "DeepSpeed's file says how the model is sharded",
}
DEFAULTS = {"save_strategy": "no"}  # in the place of TRL's
# Not the trainer's: it would publish checkpoints, and `publish` does so with what is verified.
PUBLISHING = ("push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "hub_revision")
# Read by `data.render_settings` and not handed on: examples come to TRL as tokens.
RENDERING = ("assistant_only_loss", "completion_only_loss", "chat_template_path", "eos_token", "pad_token")
ABOVE_ZERO = (
    "max_length per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps num_train_epochs "
    "save_steps eval_steps logging_steps save_total_limit learning_rate pad_to_multiple_of"
).split()
# What decides the learning rate of every step, by which implant.fade is reckoned.
SCHEDULE = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")
ONLY_SEEN = (  # beginnings of keys: trackers, logs, the hub, and the processes that feed the ranks
    *("report_to", "run_name", "project", "trackio_", "logging_", "log_", "disable_tqdm"),
    *("hub_", "push_to_hub", "include_num_input_tokens_seen", "skip_memory_metrics"),
    *("dataset_num_proc", "dataloader_num_workers", "dataloader_persistent_workers"),
    *("dataloader_pin_memory", "dataloader_prefetch_factor"),
)

SECRET = re.compile(r"(^|_)(hub_token|auth_token|access_token|api_key|password|secret)$")


@cache
def training_keys() -> frozenset[str]:
    """What `training:` may hold."""
    return frozenset(key for place in CLASSES for key in _fields(*place)) - RESERVED.keys()


def with_no_as_a_word(training: Any) -> Any:
    """YAML reads `no` as false, which none of the trainer's strategies is."""
    if not isinstance(training, dict):
        return training
    return {key: "no" if value is False and key.endswith("_strategy") else value for key, value in training.items()}


def check_training_keys(training: dict[str, Any]) -> None:
    """Raise a ValueError for the first key that `training:` may not hold."""
    for key, value in training.items():
        if key in ELSEWHERE and value:
            raise ValueError(f"training.{key} is {value!r}, allowed is nothing; {ELSEWHERE[key]}")
        if key in RESERVED:
            raise ValueError(f"training.{key} is not a key to set here: it follows from {RESERVED[key]}")
        if key not in training_keys():
            near = did_you_mean(key, training_keys())
            raise ValueError(f"training.{key} is not a key of TRL's SFTConfig that a recipe may set{near}")


def changes_a_result(key: str) -> bool:
    """Whether a model, or a stage's result before it, depends on a dotted key of the recipe.

    Others name no folder and refuse no result: questions of the model, where memory ends, logs.
    """
    section, _, name = key.partition(".")
    if section == "training":
        return not name.startswith(ONLY_SEEN)
    of_memory = ("attribution.batch_size", "attribution.memory_gib")
    return section not in ("run", "tune", "retention") and key not in of_memory


def without_secrets(value: Any) -> Any:
    """Settings as they may be recorded: keys that hold a secret are left out, however deep."""
    if isinstance(value, dict):
        return {key: without_secrets(part) for key, part in value.items() if not SECRET.search(str(key))}
    return [without_secrets(part) for part in value] if isinstance(value, list) else value


def _fields(package: str, file: str, name: str) -> list[str]:
    """The annotated attributes of a class, as its package's source has them."""
    spec = find_spec(package)
    folder = (spec.submodule_search_locations if spec else None) or ["."]
    tree = ast.parse(Path(folder[0], file).read_text(encoding="utf-8"))
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return [line.target.id for line in body if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)]
