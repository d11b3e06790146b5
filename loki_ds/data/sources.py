"""Rows of a source as they stand there: a local file, or a data set on the hub.

Text files are read line by line, so that a row keeps its number and its own keys; a CSV's values
are text. Nothing is known of what the rows mean.
"""

import csv
import json
from collections.abc import Callable, Iterator
from functools import partial
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

from datasets import load_dataset, load_dataset_builder
from datasets.exceptions import DatasetsError
from pyarrow import ArrowException
from pyarrow.parquet import ParquetFile

from loki_ds.disk.text import json_lines, json_value, lines_of, read_text
from loki_ds.recipe.sections import DATA_FILES, SourceSection
from loki_ds.refusal import Refusal, short

NOT_HAD = "no such file, and no data set of that name could be had from the hub"
LONGEST = 2**31 - 1  # characters of a CSV's value

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


def place_of(source: SourceSection, number: int) -> str:
    """A row's place as a sentence names it."""
    return places_of(source)(number)


def places_of(source: SourceSection) -> Callable[[int], str]:
    """The same of many rows; the file is looked at once."""
    file = Path(source.path)
    by_line = file.suffix == ".csv" or (file.suffix in (".json", ".jsonl") and not _is_whole_json(file))
    return partial(_place, source.path, by_line)


def _place(file: Path | str, by_line: bool, number: int) -> str:
    return f"{file}: {'line' if by_line else 'row'} {number}"


def count_of(source: SourceSection) -> int | None:
    """Rows of a data set on the hub, without fetching them; None where it does not say."""
    splits = _asked_of_hub(source, lambda: load_dataset_builder(source.path, source.name)).info.splits or {}
    return splits[source.split].num_examples if source.split in splits else None


def is_local(source: SourceSection) -> bool:
    return Path(source.path).exists() or Path(source.path).suffix in DATA_FILES


def _rows(source: SourceSection, file: Path) -> Iterator[Row]:
    if not is_local(source):
        yield from enumerate(map(_without_nulls, _from_hub(source)), start=1)
    elif not file.is_file() or file.suffix not in DATA_FILES:
        kinds = f"allowed are files that end in {', '.join(DATA_FILES)}"
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
    whole = _is_whole_json(file)
    for number, row in _whole_json(file) if whole else json_lines(file, "data file"):
        if not isinstance(row, dict):
            place = _place(file, not whole, number)
            raise Refusal(f"{place} is {json.dumps(row)[:40]}, allowed is an object with named columns")
        yield number, row


def _is_whole_json(file: Path) -> bool:
    """Whether the file is one JSON value and not a line for each row."""
    _, first = next(lines_of(file, "data file"), (0, ""))
    return first.lstrip().startswith("[") or first.strip() == "{"


def _whole_json(file: Path) -> Iterator[tuple[int, Any]]:
    rows = json_value(read_text(file, "data file"), f"{file}: the file as a whole")
    if not isinstance(rows, list):
        raise Refusal(f"{file}: one JSON object over several lines, allowed are JSON Lines or a JSON list of objects")
    yield from enumerate(rows, start=1)


def _csv(file: Path) -> Iterator[Row]:
    try:
        csv.field_size_limit(LONGEST)
        reader = csv.DictReader(StringIO(read_text(file, "data file"), newline=""), strict=True)
        names = list(reader.fieldnames or ())
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise Refusal(f"{file}: the heading has the column {twice[0]!r} twice, allowed is once")
        for row in reader:
            if None in row or None in row.values():
                raise Refusal(f"{file}: line {reader.line_num} has another number of values than the heading")
            yield reader.line_num, row
    except csv.Error as error:
        raise Refusal(f"{file}: not a csv file: {error}") from None


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    """Read where it lies; `datasets` would copy it into its cache."""
    try:
        with ParquetFile(file) as opened:
            for batch in opened.iter_batches():
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise Refusal(f"{file}: not a parquet file: {short(error, 200)}") from None


def _without_nulls(value: Any) -> Any:
    """Arrow gives every object all keys that any in its column has; nulls are nobody's."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _from_hub(source: SourceSection) -> Iterator[dict[str, Any]]:
    stream = _asked_of_hub(source, lambda: load_dataset(source.path, source.name, split=source.split, streaming=True))
    rows = iter(stream)
    for number in count():
        row = _asked_of_hub(source, lambda: next(rows, None), f"after {number:,} rows the hub gave no more")
        if row is None:
            return
        yield row


def _asked_of_hub(source: SourceSection, ask: Callable[[], Any], what: str = NOT_HAD) -> Any:
    """What the hub gives. what: did not work, for the sentence."""
    try:
        return ask()
    except (DatasetsError, OSError, ValueError, RuntimeError, ImportError) as error:
        raise Refusal(
            f"{source.path}: {what}: {short(error, 300)} (split {source.split}, configuration {source.name or 'none'})"
        ) from None
