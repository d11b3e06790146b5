"""On PYTHONPATH, a machine where models are judged and not trained: what trains is not there."""

import sys
from typing import Any

GONE = ("deepspeed", "trl", "peft")


class Without:
    """A finder of modules that does not find these."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in GONE else self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
