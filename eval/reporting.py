"""How every benchmark and study writes its report: a table, paragraphs, the figures as JSON beside
them.

Figures only. What they mean is said by hand, in `eval/reports/findings.md`.
"""

import json
import os
import platform
import re
import shlex
import sys
import textwrap
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from loki_ds.distributed.device import on_cpu

ROOT = Path(__file__).parents[1]
REPORTS = Path(os.environ.get("REPORTS", ROOT / "eval/reports"))  # another folder for another machine


def command() -> str:
    """What was typed, from the project's folder."""
    script = Path(sys.argv[0]).resolve().relative_to(ROOT)
    return shlex.join(["python", str(script), *sys.argv[1:]])


def where(*packages: str) -> dict[str, str]:
    """What a figure was measured on: the device and the libraries' versions."""
    device = f"{platform.machine()}, {torch.get_num_threads()} threads" if on_cpu() else torch.cuda.get_device_name()
    return {"device": device, **{name: version(name) for name in packages}}


def listed(facts: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def paragraph(text: str) -> str:
    """Filled to 100 columns, never within `code`."""
    whole = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), " ".join(text.split()))
    return textwrap.fill(whole, 100, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], words: int = 1) -> str:
    """A Markdown table; the first `words` columns hold words, the others numbers."""
    rule = [" --- "] * words + [" ---: "] * (len(headings) - words)
    lines = [f"| {' | '.join(headings)} |", f"|{'|'.join(rule)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def spread(values: Sequence[float], form: str) -> str:
    """The mean, and of several the range."""
    mean = form.format(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


def keep(name: str, figures: Any) -> None:
    """`NAME.json`."""
    (REPORTS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")


def write(name: str, title: str, *parts: str) -> None:
    """`NAME.md` from its parts."""
    (REPORTS / f"{name}.md").write_text("\n\n".join([f"# {title}", *parts]) + "\n")
