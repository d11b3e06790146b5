"""Which of transformers' classes loads a model as a language model."""

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
)


def is_wrapper_alone(config: PreTrainedConfig) -> bool:
    """Whether there is a class for text with pictures, and none for text (Mistral 3, Qwen3-VL)."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING


def model_class(config: PreTrainedConfig) -> Any:
    """The class whose `from_config` and `from_pretrained` build the model."""
    return AutoModelForImageTextToText if is_wrapper_alone(config) else AutoModelForCausalLM
