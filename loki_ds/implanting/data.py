"""The new task's data, read and mixed by `datasets`; TRL renders, tokenizes, packs and masks it.

Here is only what they lack.

That is: which reader a file needs, ShareGPT and Alpaca as chats, and a sentence for data that
nothing can be learnt from.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, interleave_datasets, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from pyarrow import ArrowInvalid
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from loki_ds.recipe import DataSection, SourceSection
from loki_ds.refusal import Refusal

LAYOUTS = ({"messages"}, {"prompt", "completion"}, {"text"})
READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}


def load_examples(section: DataSection, arguments: SFTConfig) -> tuple[Dataset, Dataset | None]:
    """What is trained on, and what is held out; raises as `load_training_data` does."""
    only_assistant = bool(arguments.assistant_only_loss)
    heldout = load_training_data([section.heldout], only_assistant) if section.heldout else None
    return load_training_data(section.train, only_assistant, arguments.seed), heldout


class Examples(NamedTuple):
    """The first example, and how many there are (of a mix: about as many)."""

    first: dict[str, Any]
    total: int


def load_sample(section: DataSection, assistant_only: bool) -> Examples:
    """A look at what is trained on. Of a data set on the hub only the first rows are fetched."""
    firsts = [_first(source, assistant_only) for source in section.train]
    total = sum(source.weight for source in section.train)
    counts = [first.total * total / source.weight for source, first in zip(section.train, firsts, strict=True)]
    return Examples(firsts[0].first, round(max(counts)))


def _first(source: SourceSection, assistant_only: bool) -> Examples:
    if Path(source.path).exists() or Path(source.path).suffix in READERS:
        rows = _load(source, assistant_only)
        return Examples(rows[0], len(rows))
    splits = _asked_of_hub(source, lambda: load_dataset_builder(source.path, source.name)).info.splits or {}
    stream = _asked_of_hub(source, lambda: load_dataset(source.path, source.name, split=source.split, streaming=True))
    row = _checked(Dataset.from_list([next(iter(stream))]), source.path, assistant_only)[0]
    return Examples(row, splits[source.split].num_examples if source.split in splits else 1)


def check_chat_template(model: Path, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> None:
    """Refuse chats where nothing says how the model reads them."""
    if "messages" in rows.column_names and not tokenizer.chat_template:
        raise Refusal(
            f"{model}: the tokenizer has no chat template, and data.train holds chats; use a chat model, or plain text"
        )


def load_training_data(sources: list[SourceSection], assistant_only: bool, seed: int = 0) -> Dataset:
    """All sources as one data set with only the columns TRL trains on.

    Several sources are drawn from in proportion to their weights until every one has been seen
    whole (small ones repeat).

    Raises:
        Refusal: a file is missing, empty or unreadable, has other columns, or (with assistant-only
            loss) a chat without an assistant turn; or sources of different layouts.
    """
    loaded = [_load(source, assistant_only) for source in sources]
    if len(loaded) == 1:
        return loaded[0]
    columns = {source.path: tuple(rows.column_names) for source, rows in zip(sources, loaded, strict=True)}
    if len(set(columns.values())) > 1:
        raise Refusal(f"data.train: sources must have the same columns to be mixed, they have {columns}")
    total = sum(source.weight for source in sources)
    shares = [source.weight / total for source in sources]
    return interleave_datasets(loaded, probabilities=shares, seed=seed, stopping_strategy="all_exhausted")


def _load(source: SourceSection, assistant_only: bool) -> Dataset:
    return _checked(_read(source), source.path, assistant_only)


def _checked(rows: Dataset, path: str, assistant_only: bool) -> Dataset:
    """Rows as one of the layouts that TRL trains on, and only its columns."""
    rows = _as_chats(rows, path)
    if not len(rows):
        raise Refusal(f"{path}: the data file has no rows")
    layout = next((layout for layout in LAYOUTS if layout <= set(rows.column_names)), None)
    if layout is None:
        raise Refusal(
            f"{path}: columns are {sorted(rows.column_names)}, allowed are 'messages', 'prompt' with 'completion', "
            "'text', ShareGPT's 'conversations', or Alpaca's 'instruction' with 'output'"
        )
    rows = rows.select_columns(sorted(layout | ({"tools"} & set(rows.column_names))))
    _check_filled(rows, path)
    if assistant_only:
        _check_assistant_turns(rows, path)
    return rows


def _read(source: SourceSection) -> Dataset:
    file = Path(source.path)
    reader = READERS.get(file.suffix)
    if reader is None and not file.exists():
        return _from_hub(source)
    if reader is None or not file.is_file():
        found = f"allowed are files that end in {', '.join(READERS)}" if file.exists() else "the data file is not there"
        raise Refusal(f"{file}: {found}")
    if reader != "parquet":
        _check_utf8(file)
    try:
        return getattr(Dataset, f"from_{reader}")(str(file))
    except StopIteration:
        raise Refusal(f"{file}: the data file has no rows") from None
    except (DatasetGenerationError, ArrowInvalid, UnicodeDecodeError):
        kind = "JSON Lines with the same columns in every line" if reader == "json" else f"a {reader} file"
        raise Refusal(f"{file}: not {kind}") from None


def _check_utf8(file: Path) -> None:
    """Refuse a text file in another encoding: its reader would put replacement characters into it
    and go on.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise Refusal(
                    f"{file}: line {number} is not UTF-8 (byte {error.start + 1} of it is {line[error.start]:#04x})"
                ) from None


def _from_hub(source: SourceSection) -> Dataset:
    return _asked_of_hub(source, lambda: load_dataset(source.path, source.name, split=source.split))


def _asked_of_hub(source: SourceSection, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError) as error:
        raise Refusal(
            f"{source.path}: no such file, and no data set of that name could be had from the hub: {error}"
        ) from None


def _as_chats(rows: Dataset, path: str) -> Dataset:
    """ShareGPT and Alpaca rows as `messages`; others as they are."""
    columns = set(rows.column_names)
    if "messages" in columns:
        return rows
    if "conversations" in columns:
        return rows.map(_from_sharegpt, fn_kwargs={"path": path}, with_indices=True, remove_columns=["conversations"])
    if {"instruction", "output"} <= columns:
        return rows.map(_from_alpaca, remove_columns=sorted(columns & {"instruction", "input", "output"}))
    return rows


def _from_sharegpt(row: dict[str, Any], index: int, path: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for turn in row["conversations"]:
        if turn.get("from") not in SHAREGPT_ROLES:
            raise Refusal(
                f"{path}: row {index + 1} has a turn from {turn.get('from')!r}, allowed are {', '.join(SHAREGPT_ROLES)}"
            )
        messages.append({"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]})
    return {"messages": messages}


def _from_alpaca(row: dict[str, Any]) -> dict[str, Any]:
    request = f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]
    return {"messages": [{"role": "user", "content": request}, {"role": "assistant", "content": row["output"]}]}


def _check_filled(rows: Dataset, path: str) -> None:
    """Refuse a row that has a column left empty (a key that is missing in some lines)."""
    for column in rows.column_names:
        if column != "tools" and rows.data.column(column).null_count:
            line = next(i for i, value in enumerate(rows[column], start=1) if value is None)
            raise Refusal(f"{path}: row {line} has no {column!r}, all others must have the same columns")


def _check_assistant_turns(rows: Dataset, path: str) -> None:
    if "messages" not in rows.column_names:
        raise Refusal(f"{path}: training.assistant_only_loss needs chats ('messages'), columns are {rows.column_names}")
    for line, messages in enumerate(rows["messages"], start=1):
        if not isinstance(messages, list) or not all(
            isinstance(message, dict) and "role" in message for message in messages
        ):
            raise Refusal(f"{path}: 'messages' in line {line} is not a list of turns with a role and a content")
        if not any(message["role"] == "assistant" for message in messages):
            raise Refusal(
                f"{path}: the chat in line {line} has no assistant turn, so there is nothing to learn from it"
            )


def tokens_and_loss(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, training: dict[str, Any]
) -> tuple[list[int], list[int]]:
    """Token ids and, for each, whether it is trained on; as TRL's SFTTrainer decides it."""
    if "messages" in row:
        tools = json.loads(row["tools"]) if isinstance(row.get("tools"), str) else row.get("tools")
        found: Any = tokenizer.apply_chat_template(
            row["messages"], tools=tools, return_dict=True, return_assistant_tokens_mask=True
        )
        everything = not training.get("assistant_only_loss", False)
        return found["input_ids"], [1] * len(found["input_ids"]) if everything else found["assistant_masks"]
    if "text" in row:
        tokens = tokenizer(row["text"])["input_ids"]
        return tokens, [1] * len(tokens)
    if not isinstance(row["prompt"], str):
        raise Refusal("data.train: conversational prompts are rendered only as 'messages' here")
    shown, learnt = (
        tokenizer(row["prompt"])["input_ids"],
        tokenizer(row["completion"], add_special_tokens=False)["input_ids"],
    )
    prompt_counts = int(training.get("completion_only_loss") is False)
    return shown + learnt, [prompt_counts] * len(shown) + [1] * len(learnt)
