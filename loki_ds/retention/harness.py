"""lm-eval, without what it does again and again to the same end.

It compiles a task's templates anew for every document and every choice: half the time of a small
model's evaluation. It looks the whole machine over (versions, drivers, packages) for each of them.
"""

from functools import lru_cache
from typing import Any

from lm_eval import evaluator, simple_evaluate, utils

__all__ = ["simple_evaluate"]


def _nothing(*_: Any) -> None:
    """In the place of a look at the machine that nobody reads."""


utils.env.from_string = lru_cache(maxsize=1024)(utils.env.from_string)
evaluator.add_env_info = _nothing
