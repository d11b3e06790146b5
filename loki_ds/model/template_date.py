"""Chat templates that print the date (Llama's, gpt-oss's) print one and the same.

Examples of the same recipe are the same on any day, what is trained has the date of what is asked,
and a base asked on another day was asked the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo

from transformers.utils import chat_template_utils

from loki_ds.model.replaced import replaced


class _OneDay(datetime):
    """The date that Llama's own template falls back on."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "_OneDay":
        return cls(2024, 7, 26, tzinfo=tz)


@contextmanager
def one_date() -> Iterator[None]:
    """While it lasts, templates' `strftime_now` gives 26 July 2024."""
    with replaced(chat_template_utils, "datetime", _OneDay):  # where `strftime_now` looks
        yield
