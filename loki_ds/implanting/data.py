"""The new task's data, read by `datasets`; TRL renders, tokenizes, packs and masks it. Here is only what they would let pass."""

from pathlib import Path

from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowInvalid

from loki_ds.refusal import Refusal

LAYOUTS = ({"messages"}, {"prompt", "completion"}, {"text"})


def load_training_data(file: str, assistant_only: bool) -> Dataset:
    """Rows of a JSON Lines file, with only the columns TRL trains on.

    Raises:
        Refusal: the file is missing, empty, not JSON Lines, has other columns, or (with assistant-only loss) a chat without an
            assistant turn.
    """
    if not Path(file).is_file():
        raise Refusal(f"{file}: the data file is not there")
    try:
        rows = Dataset.from_json(file)
    except StopIteration:
        raise Refusal(f"{file}: the data file has no rows") from None
    except (DatasetGenerationError, ArrowInvalid, UnicodeDecodeError):
        raise Refusal(f"{file}: not JSON Lines with the same columns in every line") from None
    layout = next((layout for layout in LAYOUTS if layout <= set(rows.column_names)), None)
    if layout is None:
        raise Refusal(f"{file}: columns are {sorted(rows.column_names)}, allowed are 'messages', 'prompt' with 'completion', or 'text'")
    kept = sorted(layout | ({"tools"} & set(rows.column_names)))
    rows = rows.select_columns(kept)
    if assistant_only:
        _check_assistant_turns(rows, file)
    return rows


def _check_assistant_turns(rows: Dataset, file: str) -> None:
    if "messages" not in rows.column_names:
        raise Refusal(f"{file}: training.assistant_only_loss needs chats ('messages'), columns are {rows.column_names}")
    for line, messages in enumerate(rows["messages"], start=1):
        if not any(message["role"] == "assistant" for message in messages):
            raise Refusal(f"{file}: the chat in line {line} has no assistant turn, so there is nothing to learn from it")
