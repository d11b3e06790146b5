"""JSON Lines, read and written."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def rows(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def write(file: Path, made: Any) -> None:
    """JSON Lines, put in place whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".part")
    aside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    aside.replace(file)
