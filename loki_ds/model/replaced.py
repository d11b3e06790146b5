"""A name of a library's, or of an object's, that stands for something else for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    """While it lasts, an attribute of a library's has another value; a decorator, too."""
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)
