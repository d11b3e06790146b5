"""A PEFT adapter on a model: all of it, or a refusal.

PEFT warns of tensors that it has no place for, and leaves the adapter's own at their start, where
they change nothing: the base would be judged in its place.
"""

from pathlib import Path
from typing import Any

from loki_ds.refusal import Refusal, short

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def check_adapter(folder: Path) -> None:
    """Refuse a folder that is no whole adapter, by its files' names."""
    if not any((folder / name).exists() for name in WEIGHTS):
        raise Refusal(f"{folder}: {CONFIG} has no weights beside it ({' or '.join(WEIGHTS)})")


def with_adapter(model: Any, folder: Path) -> Any:
    """The model with the adapter in a folder put on it.

    Raises:
        Refusal: PEFT is not here, the adapter does not fit the model, or some of what it trains is
            not in its file.
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
        from peft.utils import load_peft_weights
    except ImportError:
        raise Refusal(f"{folder}: an adapter needs PEFT, which is not installed (pip install peft)") from None
    try:
        adapted = PeftModel.from_pretrained(model, str(folder))
    except (ValueError, RuntimeError, KeyError, OSError, AttributeError, TypeError) as error:
        raise Refusal(f"{folder}: PEFT cannot put the adapter on {type(model).__name__}: {short(error, 300)}") from None
    stored = load_peft_weights(str(folder), device="cpu")
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if missing := sorted(wanted.keys() - stored.keys()):
        unknown = sorted(stored.keys() - wanted.keys())
        instead = f", it has {unknown[0]}" if unknown else ""
        raise Refusal(
            f"{folder}: the adapter's file has no {missing[0]} ({len(missing)} of {len(wanted)} missing{instead}), so "
            "it would change nothing there"
        )
    return adapted
