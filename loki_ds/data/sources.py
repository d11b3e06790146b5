"""Rows of a source as they stand there: a local file, or a data set on the hub.

Text files are read line by line, so that a row keeps its number and its own keys; a CSV's values
are text. Nothing is known of what the rows mean.
"""

import csv
import json
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from pyarrow import ArrowInvalid

from loki_ds.disk.text import json_lines, lines_of, read_text
from loki_ds.recipe.sections import SourceSection
from loki_ds.refusal import Refusal

READERS = (".json", ".jsonl", ".parquet", ".csv")

Row = tuple[int, dict[str, Any]]  # its number from 1, in a text file that of its line


def rows_of(source: SourceSection) -> Iterator[Row]:
    """All rows, in their order.

    Raises:
        Refusal: there is no such source, it has no rows, or a row is not one.
    """
    file, empty = Path(source.path), True
    for row in _rows(source, file):
        empty = False
        yield row
    if empty:
        raise Refusal(f"{source.path}: the data file has no rows")


def count_of(source: SourceSection) -> int | None:
    """Rows of a data set on the hub, without fetching them; None where it does not say."""
    splits = _asked_of_hub(source, lambda: load_dataset_builder(source.path, source.name)).info.splits or {}
    return splits[source.split].num_examples if source.split in splits else None


def is_local(source: SourceSection) -> bool:
    return Path(source.path).exists() or Path(source.path).suffix in READERS


def _rows(source: SourceSection, file: Path) -> Iterator[Row]:
    if not is_local(source):
        stream = _asked_of_hub(
            source, lambda: load_dataset(source.path, source.name, split=source.split, streaming=True)
        )
        yield from enumerate(map(_without_nulls, stream), start=1)
    elif not file.is_file() or file.suffix not in READERS:
        kinds = f"allowed are files that end in {', '.join(READERS)}"
        problem = kinds if file.exists() else "the data file is not there"
        raise Refusal(f"{file}: {problem}")
    elif file.suffix == ".parquet":
        yield from enumerate(map(_without_nulls, _parquet(file)), start=1)
    elif file.suffix == ".csv":
        yield from _csv(file)
    else:
        yield from _json(file)


def _json(file: Path) -> Iterator[Row]:
    """JSON Lines, or one JSON list of objects."""
    for number, row in _json_list(file) if _is_json_list(file) else json_lines(file, "data file"):
        if not isinstance(row, dict):
            raise Refusal(f"{file}: line {number} is {json.dumps(row)[:40]}, allowed is an object with named columns")
        yield number, row


def _is_json_list(file: Path) -> bool:
    _, first = next(lines_of(file, "data file"), (0, ""))
    return first.lstrip().startswith("[")


def _json_list(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        yield from enumerate(json.loads(read_text(file, "data file")), start=1)
    except ValueError as error:
        raise Refusal(f"{file}: not a JSON list of objects ({error})") from None


def _csv(file: Path) -> Iterator[Row]:
    try:
        reader = csv.DictReader(StringIO(read_text(file, "data file"), newline=""), strict=True)
        for row in reader:
            if None in row or None in row.values():
                raise Refusal(f"{file}: line {reader.line_num} has another number of values than the heading")
            yield reader.line_num, row
    except csv.Error as error:
        raise Refusal(f"{file}: not a csv file: {error}") from None


def _parquet(file: Path) -> Dataset:
    try:
        return Dataset.from_parquet(str(file))
    except (DatasetGenerationError, ArrowInvalid):
        raise Refusal(f"{file}: not a parquet file") from None


def _without_nulls(value: Any) -> Any:
    """Arrow gives every object all keys that any in its column has; nulls are nobody's."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _asked_of_hub(source: SourceSection, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError) as error:
        raise Refusal(
            f"{source.path}: no such file, and no data set of that name could be had from the hub: {error}"
        ) from None
