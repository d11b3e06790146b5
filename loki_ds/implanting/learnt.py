"""TRL's trainer, which asks the head for the learnt tokens alone; on a processor, too.

TRL does so where it has Triton. Elsewhere it scores every token and then leaves out all but the
learnt ones, because devices that compile would compile anew for every number of them. A processor
compiles nothing, and of a small model with long prompts the head is half of a step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Module
from trl import SFTTrainer
from trl.trainer import utils


class LearntTokensTrainer(SFTTrainer):
    """The same loss and metrics from fewer products."""

    def compute_loss(self, model: Module, *args: Any, **kwargs: Any) -> Any:
        with _learnt_alone():
            return super().compute_loss(model, *args, **kwargs)


@contextmanager
def _learnt_alone() -> Iterator[None]:
    """While open, TRL's forward takes a processor for a device that compiles nothing anew.

    The name is TRL's own business: without it every token is scored, as TRL has it.
    """
    stock = getattr(utils, "_use_triton", None)
    if stock is None:
        yield
        return

    def any_shape(device: torch.device) -> bool:
        return device.type == "cpu" or stock(device)

    utils._use_triton = any_shape
    try:
        yield
    finally:
        utils._use_triton = stock
