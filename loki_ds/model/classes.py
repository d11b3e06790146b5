"""Which of transformers' classes loads a model as a language model, and whether all of it is."""

from pathlib import Path
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
)

from loki_ds.refusal import Refusal


def is_wrapper_alone(config: PreTrainedConfig) -> bool:
    """Whether there is a class for text with pictures, and none for text (Mistral 3, Qwen3-VL)."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING


def model_class(config: PreTrainedConfig) -> Any:
    """The class whose `from_config` and `from_pretrained` build the model."""
    return AutoModelForImageTextToText if is_wrapper_alone(config) else AutoModelForCausalLM


def load_whole(folder: Path, trust_remote_code: bool, **settings: Any) -> Any:
    """A model from a folder.

    settings: of transformers' `from_pretrained`.

    Raises:
        Refusal: a tensor of the class that is not in the files; transformers would make one at
            random, and warn.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    model, info = model_class(config).from_pretrained(
        folder, trust_remote_code=trust_remote_code, output_loading_info=True, **settings
    )
    if missing := sorted(info["missing_keys"]):
        raise Refusal(
            f"{folder}: not there of what config.json asks for: {', '.join(missing[:3])} ({len(missing)} in all)"
        )
    return model
