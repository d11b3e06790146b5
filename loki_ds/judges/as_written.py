"""Prompts that are put to a model as they are written, as an lm-eval task: for its answers alone,
which nobody judges.
"""

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask

from loki_ds.disk.text import json_lines


class AsWritten(ConfigurableTask):
    """A task of the prompts in `dataset_kwargs.path`, JSON Lines, with the template's special
    tokens in them; asked with `apply_chat_template`, so that the tokenizer adds none.
    """

    BY_TEMPLATE = True

    def __init__(self, config: dict[str, Any]) -> None:
        own = {key: value for key, value in config.items() if key != "class"}
        super().__init__(config={**SETTINGS, **own})

    def fewshot_context(self, doc: dict[str, str], *_: Any, **__: Any) -> str:
        return doc["prompt"]


def documents(path: str, **_: Any) -> DatasetDict:
    return DatasetDict(test=Dataset.from_list([row for _, row in json_lines(Path(path), "prompts")]))


SETTINGS = {
    "custom_dataset": documents,
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "",
    "process_results": lambda _, results: {"characters": len(results[0])},
    "metric_list": [{"metric": "characters", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}
