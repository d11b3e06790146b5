"""Keys of a recipe: which of TRL's other sections set, which change no result, which are secret.

Which keys TRL has, and what each may be, is `implanting.trl_checks`'s: importing TRL takes seconds.
"""

import re
from collections.abc import Iterable
from typing import Any

RESERVED = {
    "output_dir": "the run folder",
    "deepspeed": "the recipe's own key 'deepspeed'",
    "model_init_kwargs": "the section 'model'",
    "parallelism_config": "the recipe's own key 'sequence_parallel'",
}
ONLY_SEEN = (  # beginnings of keys: trackers, logs, the hub, and the processes that feed the ranks
    *("report_to", "run_name", "project", "trackio_", "logging_", "log_", "disable_tqdm"),
    *("hub_", "push_to_hub", "include_num_input_tokens_seen", "skip_memory_metrics"),
    *("dataset_num_proc", "dataloader_num_workers", "dataloader_persistent_workers"),
    *("dataloader_pin_memory", "dataloader_prefetch_factor"),
)

SECRET = re.compile(r"(^|_)(hub_token|auth_token|access_token|api_key|password|secret)$")


def with_no_as_a_word(training: Any) -> Any:
    """YAML reads `no` as false, which none of the trainer's strategies is."""
    if not isinstance(training, dict):
        return training
    return {key: "no" if value is False and key.endswith("_strategy") else value for key, value in training.items()}


def check_reserved(training: Iterable[str]) -> None:
    """Raise a ValueError for the first key that other sections set."""
    for key in training:
        if key in RESERVED:
            raise ValueError(f"training.{key} is not a key to set here: it follows from {RESERVED[key]}")


def changes_a_result(key: str) -> bool:
    """Whether a model, or a stage's result before it, depends on a dotted key of the recipe.

    Others name no folder and refuse no result: what is asked of the finished model, where memory
    ends, what is logged.
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
