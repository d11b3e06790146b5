"""ZeRO's section of a DeepSpeed file, as DeepSpeed itself reads it."""

from typing import Any

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError

from loki_ds.refusal import Refusal


def check_zero(section: dict[str, Any], file: str) -> None:
    """Refuse a value that DeepSpeed will not take; `auto` is the trainer's to fill in."""
    try:
        DeepSpeedZeroConfig(**{key: value for key, value in section.items() if value != "auto"})
    except (ValidationError, TypeError) as error:
        if isinstance(error, TypeError):
            raise Refusal(f"{file}: zero_optimization: {error}") from None
        wrong = error.errors()[0]
        key = ".".join(map(str, ("zero_optimization", *wrong["loc"])))
        raise Refusal(f"{file}: {key} is {wrong['input']!r}: {wrong['msg']}") from None
