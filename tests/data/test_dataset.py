"""All examples of a recipe: files of every kind, mixed by weight, cut and counted; kept once, never
stale.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from datasets import Dataset
from transformers import AutoTokenizer

from loki_ds.data.dataset import Counts, RenderedFolder, examples_in, first_counts, mixed, needs_of, render_source
from loki_ds.data.render_settings import make_rendering
from loki_ds.data.rendering import NOT_LEARNED, Cut, Renderer
from loki_ds.data.sources import rows_of
from loki_ds.data.templates import own_template
from loki_ds.recipe.sections import DataSection, SourceSection
from loki_ds.refusal import Refusal

TOKENIZER = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "[ ]"}]
CALLS = {
    "messages": [
        TURNS[0],
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
    ],
    "tools": [{"name": "f", "description": "d", "parameters": {}}],
}


def renderer(only_assistant: bool = False) -> Renderer:
    return Renderer(TOKENIZER, own_template(TOKENIZER, None, "m"), only_assistant)


def written(path: Path, content: str | bytes | list) -> SourceSection:
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return SourceSection(path=str(path))


def rendered(source: SourceSection, folder: Path, cut: Cut = Cut(None), **settings: Any) -> tuple[Counts, list[str]]:  # noqa: B008
    file = folder / f"{Path(source.path).name}.arrow"
    counts = render_source(source, renderer(**settings), cut, len(TOKENIZER), file)
    return counts, [TOKENIZER.decode(row["input_ids"]) for row in Dataset.from_file(str(file))]


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet", "csv"])
def test_files_of_every_kind(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"d.{ending}"
    getattr(Dataset.from_list([{"text": "one"}, {"text": "two"}]), f"to_{ending.removesuffix('l')}")(str(path))
    assert [row["text"] for _, row in rows_of(SourceSection(path=str(path)))] == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('[{"text": "one"}, {"text": "two"}]', [(1, "one"), (2, "two")]),
        ('{"text": "one"}\n\n{"text": "two"}\n', [(1, "one"), (3, "two")]),
        (b'\xef\xbb\xbf{"text": "one"}\r\n', [(1, "one")]),
        ('{"text": "a\u2028b\u0085c"}\n', [(1, "a\u2028b\u0085c")]),
    ],
    ids=["a list", "a blank line", "a byte-order mark", "other separators"],
)
def test_a_line_ends_at_its_newline_and_nowhere_else(content: str | bytes, rows: list, tmp_path: Path) -> None:
    source = written(tmp_path / "d.json", content)
    assert [(number, row["text"]) for number, row in rows_of(source)] == rows


def test_a_csvs_values_are_text(tmp_path: Path) -> None:
    source = written(tmp_path / "d.csv", 'prompt,completion\n"a\u2028 b",7\nc,NA\nd,None\n')
    assert [row["completion"] for _, row in rows_of(source)] == ["7", "NA", "None"]


def test_rows_keep_their_own_keys(tmp_path: Path) -> None:
    """Arrow would give every call the arguments of all others."""
    other = {
        "messages": [
            TURNS[0],
            {"role": "assistant", "content": "", "tool_calls": [{"name": "g", "arguments": {"b": 2}}]},
        ]
    }
    rows = [row for _, row in rows_of(written(tmp_path / "d.jsonl", [CALLS, other]))]
    assert rows[1]["messages"][1]["tool_calls"][0]["arguments"] == {"b": 2}
    path = tmp_path / "d.parquet"
    Dataset.from_list([{"m": {"a": 1}}, {"m": {"b": 2}}]).to_parquet(str(path))
    assert [row["m"] for _, row in rows_of(SourceSection(path=str(path)))] == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("d.jsonl", "{half", "line 1 is not JSON"),
        ("d.jsonl", '{"text": "a"}\n5\n', "line 2 is 5, allowed is an object"),
        ("d.json", "[{]", "the file as a whole is not JSON"),
        ("d.csv", "a,b\n1\n", "line 2 has another number of values than the heading"),
        ("d.jsonl", "", "the data file has no rows"),
        ("d.txt", "hello", "allowed are files that end in"),
    ],
)
def test_broken_files_are_named(name: str, content: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=says):
        list(rows_of(written(tmp_path / name, content)))


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(Refusal, match=r"nowhere\.jsonl: the data file is not there"):
        list(rows_of(SourceSection(path="nowhere.jsonl")))


# --- all of them ----------------------------------------------------------------------------------


def test_what_was_found_is_counted_and_said(tmp_path: Path) -> None:
    rows = [{"messages": TURNS, "id": 1}, {"messages": [{**TURNS[0], "content": "hello " * 30}, TURNS[1]], "id": 2}]
    counts, texts = rendered(written(tmp_path / "d.jsonl", rows), tmp_path, Cut(20), only_assistant=True)
    assert (counts.rows, counts.cut, counts.dropped, counts.dropped_lines, len(texts)) == (2, 1, 1, [2], 1)
    assert counts.learned == 6
    assert counts.unused == ["id"]
    assert "1 of them all that is learned, and are left out (lines 2, ...)" in counts.said()
    assert "columns that are not used: id" in counts.said()


def test_a_call_of_a_function_that_is_not_listed_is_said(tmp_path: Path) -> None:
    called = {"function": {"name": "lookUp", "arguments": {}}}
    turns = [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [called]}]
    source = written(tmp_path / "d.jsonl", [{**CALLS, "messages": turns}, CALLS])
    counts = first_counts(source, renderer(), Cut(None), len(TOKENIZER), 10)
    assert counts.unlisted == {"lookUp": 1}
    assert "1 rows call lookUp, which is not among theirs" in counts.said()


def test_what_is_not_used_of_turns_is_said(tmp_path: Path) -> None:
    said = {**CALLS["messages"][1], "thoughts": "call it", "name": None}  # type: ignore[dict-item]
    source = written(tmp_path / "d.jsonl", [{"messages": [TURNS[0], said]}, CALLS])
    counts = first_counts(source, renderer(), Cut(None), len(TOKENIZER), 10)
    assert (counts.undefined, counts.unused_in_turns) == (1, ["thoughts"])
    assert "1 rows call functions and define none" in counts.said()
    assert "keys of turns that the template does not use: thoughts" in counts.said()


def test_the_end_may_be_what_is_kept(tmp_path: Path) -> None:
    source = written(tmp_path / "d.jsonl", [{"messages": [{**TURNS[0], "content": "hello " * 30}, TURNS[1]]}])
    counts, _ = rendered(source, tmp_path, Cut(20, keeps_end=True), only_assistant=True)
    assert (counts.cut, counts.dropped) == (1, 0)


@pytest.mark.parametrize(
    ("rows", "settings", "says"),
    [
        (
            [{"messages": TURNS}, {"messages": TURNS[:1]}],
            {"only_assistant": True},
            "line 2 is a chat without an answer of the assistant's",
        ),
        (
            [{"messages": TURNS}],
            {"only_assistant": True, "cut": Cut(2)},
            "after the cut at training.max_length 2 no example",
        ),
        ([{"text": "a"}], {"only_assistant": True}, "line 1 is no chat, and training.assistant_only_loss"),
        ([{"text": "a"}, {"text": 5}], {}, "line 2 has 5 in 'text', allowed is a text"),
    ],
)
def test_rows_that_teach_nothing_are_named(rows: list, settings: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=says):
        rendered(written(tmp_path / "d.jsonl", rows), tmp_path, **settings)
    assert not (tmp_path / "d.jsonl.arrow").exists()


def test_tokens_that_the_model_does_not_have_are_named(tmp_path: Path) -> None:
    source = written(tmp_path / "d.jsonl", [{"text": "please"}])
    largest = max(TOKENIZER("please" + TOKENIZER.eos_token)["input_ids"])
    with pytest.raises(
        Refusal, match=rf"line 1 has the token .* \(id {largest}\), the model's embedding has {largest} rows"
    ):
        render_source(source, renderer(), Cut(None), largest, tmp_path / "d.arrow")


def test_sources_are_mixed_by_weight_until_all_were_seen(tmp_path: Path) -> None:
    many = written(tmp_path / "many.jsonl", [{"text": f"new {i}"} for i in range(300)])
    few = written(tmp_path / "few.jsonl", [{"messages": TURNS}] * 10)
    sources = [many.model_copy(update={"weight": 3.0}), few]
    texts = [rendered(source, tmp_path)[1] for source in sources]
    files = [tmp_path / "many.jsonl.arrow", tmp_path / "few.jsonl.arrow"]
    drawn = [TOKENIZER.decode(row["input_ids"]) for row in mixed(files, sources, seed=1)]
    assert set(drawn) == {*texts[0], *texts[1]}
    assert sum(text in texts[1] for text in drawn) / len(drawn) == pytest.approx(0.25, abs=0.06)
    assert drawn == [TOKENIZER.decode(row["input_ids"]) for row in mixed(files, sources, seed=1)]
    assert examples_in(DataSection(train=sources)) == pytest.approx(len(drawn), rel=0.1)


def test_plain_chats_and_tool_chats_train_together(tmp_path: Path) -> None:
    """The replay that the documents advise: Arrow has no common type for the two."""
    data = DataSection(
        train=[written(tmp_path / "p.jsonl", [{"messages": TURNS}]), written(tmp_path / "t.jsonl", [CALLS])]
    )
    rendering = make_rendering(needs_of(data.sources), {"assistant_only_loss": True}, TOKENIZER, "m")
    counts = RenderedFolder(tmp_path / "kept").render(data, rendering, len(TOKENIZER), {"data": 1})
    train, heldout = RenderedFolder(tmp_path / "kept").load(data, seed=0)
    said = {TOKENIZER.decode([token for token in row["labels"] if token != NOT_LEARNED]) for row in train}
    assert any("f(a=1)" in text.replace(" ", "") for text in said)
    assert (len(counts), heldout) == (2, None)


def test_what_is_kept_is_made_again_when_anything_it_rests_on_changes(tmp_path: Path) -> None:
    data = DataSection(train=[written(tmp_path / "d.jsonl", [{"messages": TURNS}])])
    kept, rendering = RenderedFolder(tmp_path / "kept"), make_rendering(needs_of(data.sources), {}, TOKENIZER, "m")
    first = kept.render(data, rendering, len(TOKENIZER), {"data": "a"})
    stamp = (tmp_path / "kept/0.arrow").stat().st_mtime_ns
    assert kept.render(data, rendering, len(TOKENIZER), {"data": "a"}) == first
    assert (tmp_path / "kept/0.arrow").stat().st_mtime_ns == stamp
    written(tmp_path / "d.jsonl", [{"messages": TURNS}] * 2)
    assert kept.render(data, rendering, len(TOKENIZER), {"data": "b"})[0].rows == 2


def test_what_the_kept_examples_ask_of_a_template_is_not_read_again(tmp_path: Path) -> None:
    data = DataSection(train=[written(tmp_path / "d.jsonl", [CALLS])])
    kept = RenderedFolder(tmp_path / "kept")
    needed = kept.needs(data, {"digest": "a"})
    rendering = make_rendering(needed, {}, TOKENIZER, "m")
    kept.render(data, rendering, len(TOKENIZER), {"data": {"digest": "a"}})
    written(tmp_path / "d.jsonl", [{"messages": TURNS}])
    assert kept.needs(data, {"digest": "a"}) == needed
    assert kept.needs(data, {"digest": "b"}) == needs_of(data.sources) != needed


def test_a_plan_counts_the_first_rows_as_the_run_will_all(tmp_path: Path) -> None:
    source = written(tmp_path / "d.jsonl", [{"messages": TURNS}] * 5)
    whole = render_source(source, renderer(), Cut(4, keeps_end=True), len(TOKENIZER), tmp_path / "d.arrow")
    first = first_counts(source, renderer(), Cut(4, keeps_end=True), len(TOKENIZER), 2)
    assert whole.said().startswith(f"{source.path}: 5 rows, ")
    assert "5 rows lose their beginning to the cut" in whole.said()
    assert first.said() == whole.said().replace("5 rows", "the first 2 rows", 1).replace("5 rows", "2 rows").replace(
        f"{whole.learned:,} of {whole.tokens:,}", f"{first.learned:,} of {first.tokens:,}"
    )
    assert (first.rows, first.longest) == (2, whole.longest)


# --- the choice -----------------------------------------------------------------------------------


def test_the_template_of_a_file_is_the_one_that_trains_and_leaves(tmp_path: Path) -> None:
    data = DataSection(train=[written(tmp_path / "d.jsonl", [{"messages": TURNS}])])
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}\n{% endfor %}")
    rendering = make_rendering(
        needs_of(data.sources), {"chat_template_path": str(tmp_path / "own.jinja")}, TOKENIZER, "m"
    )
    assert rendering.exported_template == (tmp_path / "own.jinja").read_text()
    assert rendering.renderer.tokenizer.chat_template == rendering.exported_template
    assert TOKENIZER.chat_template != rendering.exported_template
    assert make_rendering(needs_of(data.sources), {}, TOKENIZER, "m").exported_template is None


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"chat_template_path": "other/model"}, "training.chat_template_path is other/model, allowed is a file"),
        ({"eos_token": "<|nowhere|>"}, "training.eos_token is '<|nowhere|>', which is no token of the tokenizer"),
        ({"pad_token": "<|nowhere|>"}, "training.pad_token is"),
    ],
)
def test_settings_that_cannot_be_are_named(training: dict, says: str, tmp_path: Path) -> None:
    data = DataSection(train=[written(tmp_path / "d.jsonl", [{"messages": TURNS}])])
    with pytest.raises(Refusal, match=says.replace("|", r"\|")):
        make_rendering(needs_of(data.sources), training, TOKENIZER, "m")
