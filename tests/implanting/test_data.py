"""Every layout and file a user brings, mixed by weight; and what TRL and datasets would let pass,
refused by name.
"""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from loki_ds.implanting.data import load_training_data
from loki_ds.recipe import SourceSection
from loki_ds.refusal import Refusal

TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "[ ]"}]
CHAT = {"messages": TURNS, "category": "simple"}
SILENT = {"messages": TURNS[:1], "category": "simple"}


def write(path: Path, rows: list) -> list[SourceSection]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [SourceSection(path=str(path))]


def test_only_the_columns_trl_trains_on_are_kept(tmp_path: Path) -> None:
    assert load_training_data(write(tmp_path / "d.jsonl", [CHAT]), assistant_only=True).column_names == ["messages"]
    pairs = [{"prompt": "a", "completion": "b", "extra": 1}]
    assert load_training_data(write(tmp_path / "p.jsonl", pairs), assistant_only=False).column_names == [
        "completion",
        "prompt",
    ]
    tools = [{**CHAT, "tools": json.dumps([{"name": "weather"}])}]
    assert load_training_data(write(tmp_path / "t.jsonl", tools), assistant_only=True).column_names == [
        "messages",
        "tools",
    ]


def test_sharegpt_and_alpaca_become_chats(tmp_path: Path) -> None:
    shared = [
        {"system": "be brief", "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "[ ]"}]}
    ]
    (row,) = load_training_data(write(tmp_path / "s.jsonl", shared), assistant_only=True)
    assert row["messages"] == [{"role": "system", "content": "be brief"}, *TURNS]
    alpaca = [{"instruction": "add", "input": "1 2", "output": "3"}]
    (row,) = load_training_data(write(tmp_path / "a.jsonl", alpaca), assistant_only=True)
    assert row["messages"] == [{"role": "user", "content": "add\n\n1 2"}, {"role": "assistant", "content": "3"}]


@pytest.mark.parametrize("ending", ["json", "parquet", "csv"])
def test_other_files(tmp_path: Path, ending: str) -> None:
    path = str(tmp_path / f"d.{ending}")
    getattr(Dataset.from_list([{"text": "one"}, {"text": "two"}]), f"to_{ending}")(path)
    assert load_training_data([SourceSection(path=path)], assistant_only=False)["text"][:] == ["one", "two"]


def test_sources_are_mixed_by_weight_until_all_were_seen(tmp_path: Path) -> None:
    many = write(tmp_path / "many.jsonl", [{"text": f"new {i}"} for i in range(300)])[0]
    few = write(tmp_path / "few.jsonl", [{"text": f"replay {i}"} for i in range(10)])[0]
    sources = [many.model_copy(update={"weight": 3.0}), few]
    texts = load_training_data(sources, assistant_only=False, seed=1)["text"][:]
    assert {text for text in texts if text.startswith("new")} == {f"new {i}" for i in range(300)}
    assert sum(text.startswith("replay") for text in texts) / len(texts) == pytest.approx(0.25, abs=0.06)
    assert texts == load_training_data(sources, assistant_only=False, seed=1)["text"][:]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([CHAT, SILENT], "the chat in line 2 has no assistant turn"),
        ([{"question": "a"}], r"columns are \['question'\], allowed are 'messages'"),
        ([{"text": "a"}], "assistant_only_loss needs chats"),
        (
            [{"conversations": [{"from": "narrator", "value": "x"}]}],
            "row 1 has a turn from 'narrator', allowed are human",
        ),
        ([], "has no rows"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, rows: list, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        load_training_data(write(tmp_path / "d.jsonl", rows), assistant_only=True)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text("{half")
    (tmp_path / "notes.txt").write_text("hello")
    for name, says in (
        ("nowhere.jsonl", "is not there"),
        ("broken.jsonl", "not JSON Lines"),
        ("notes.txt", "allowed are files that end in"),
    ):
        with pytest.raises(Refusal, match=says):
            load_training_data([SourceSection(path=str(tmp_path / name))], assistant_only=False)


def test_different_layouts_are_not_mixed(tmp_path: Path) -> None:
    sources = write(tmp_path / "d.jsonl", [CHAT]) + write(tmp_path / "t.jsonl", [{"text": "a"}])
    with pytest.raises(Refusal, match="sources must have the same columns to be mixed"):
        load_training_data(sources, assistant_only=False)
