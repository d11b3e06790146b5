"""What TRL and datasets would let pass: missing files, other columns, chats with nothing to learn."""

import json
from pathlib import Path

import pytest

from loki_ds.implanting.data import load_training_data
from loki_ds.refusal import Refusal

CHAT = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "[ ]"}], "category": "simple"}
SILENT = {"messages": [{"role": "user", "content": "hello"}], "category": "simple"}


def write(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_only_the_columns_trl_trains_on_are_kept(tmp_path: Path) -> None:
    assert load_training_data(write(tmp_path / "d.jsonl", [CHAT]), assistant_only=True).column_names == ["messages"]
    pairs = [{"prompt": "a", "completion": "b", "extra": 1}]
    assert load_training_data(write(tmp_path / "p.jsonl", pairs), assistant_only=False).column_names == ["completion", "prompt"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([CHAT, SILENT], "the chat in line 2 has no assistant turn"),
        ([{"question": "a"}], r"columns are \['question'\], allowed are 'messages'"),
        ([{"text": "a"}], "assistant_only_loss needs chats"),
        ([], "has no rows"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, rows: list, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        load_training_data(write(tmp_path / "d.jsonl", rows), assistant_only=True)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="is not there"):
        load_training_data(str(tmp_path / "nowhere.jsonl"), assistant_only=False)
    (tmp_path / "broken.jsonl").write_text("{half")
    with pytest.raises(Refusal, match="not JSON Lines"):
        load_training_data(str(tmp_path / "broken.jsonl"), assistant_only=False)
