"""All examples of a recipe: read, rendered, counted and kept as tokens, once.

The rows that train are written to an Arrow file as they are made, so that memory does not grow with
them; every rank maps the file.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, interleave_datasets
from rich.progress import Progress, TextColumn

from loki_ds.data.layouts import Example, columns_read, example_of
from loki_ds.data.messages import NotUnderstood
from loki_ds.data.render_settings import Rendering
from loki_ds.data.rendering import NOT_LEARNED, Cut, Rendered, Renderer
from loki_ds.data.sources import count_of, is_local, place_of, rows_of
from loki_ds.data.templates import Needs
from loki_ds.disk.files import remove, write_json, written_whole
from loki_ds.recipe.sections import DataSection, SourceSection
from loki_ds.refusal import Refusal

SHOWN = "{task.description}: {task.completed:,.0f} rows"  # while a terminal looks on
SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})
AT_ONCE = 1000  # rows written together
NAMED = 3  # lines that a sentence names
# Keys of turns, whether a template shows them or not.
UNDERSTOOD = {"role", "content", "tool_calls", "tool_call_id", "name"}


@dataclass
class Counts:
    """What was found in a source."""

    path: str
    first: int | None = None  # rows looked at; None for all
    keeps_end: bool = False
    rows: int = 0
    tokens: int = 0
    learned: int = 0  # tokens, before the cut
    longest: int = 0
    cut: int = 0  # rows that lose tokens
    dropped: int = 0  # rows that lose all that is learned
    dropped_lines: list[int] = field(default_factory=list)  # the first of them
    unused: list[str] = field(default_factory=list)  # columns that nothing reads
    unused_in_turns: list[str] = field(default_factory=list)  # keys of turns that the template does not read
    undefined: int = 0  # rows that call functions and define none
    unlisted: dict[str, int] = field(default_factory=dict)  # rows by a function called that theirs do not have
    unanswered: int = 0  # chats whose last turn is not the assistant's
    ends: dict[str, int] = field(default_factory=dict)  # chats by the token that ends what is learned
    lost: dict[str, int] = field(default_factory=dict)  # chats by what the template drops of them
    brought: dict[str, int] = field(default_factory=dict)  # chats by special tokens in what is said to the model

    def said(self) -> str:
        """The counts in a sentence."""
        rows = f"the first {self.rows:,} rows" if self.rows == self.first else f"{self.rows:,} rows"
        parts = [f"{rows}, {self.learned:,} of {self.tokens:,} tokens learned, the longest {self.longest:,}"]
        lost = "beginning" if self.keeps_end else "end"
        parts += [f"{self.cut:,} rows lose their {lost} to the cut"] if self.cut else []
        first = ", ".join(map(str, self.dropped_lines))
        parts += (
            [f"{self.dropped:,} of them all that is learned, and are left out (lines {first}, ...)"]
            if self.dropped
            else []
        )
        parts += [f"{self.undefined:,} rows call functions and define none"] if self.undefined else []
        parts += [f"{rows:,} rows call {name}, which is not among theirs" for name, rows in self.unlisted.items()]
        parts += [f"{self.unanswered:,} chats end without an answer"] if self.unanswered else []
        parts += [f"{rows:,} rows lose {what}, which the template drops" for what, rows in self.lost.items()]
        if self.brought:
            chats = ", ".join(f"{token} in {rows:,}" for token, rows in sorted(self.brought.items()))
            parts.append(f"what is said to the model holds special tokens, which read as the template's own: {chats}")
        parts += [f"columns that are not used: {', '.join(self.unused)}"] if self.unused else []
        of_turns = ", ".join(self.unused_in_turns)
        parts += [f"keys of turns that the template does not use: {of_turns}"] if of_turns else []
        return f"{self.path}: {'; '.join(parts)}"


def examples_of(source: SourceSection) -> Iterator[tuple[int, Example]]:
    """The examples of a source with their rows' numbers.

    Raises:
        Refusal: a row is not understood.
    """
    for number, row in rows_of(source):
        yield number, _understood(source, number, row)


def _understood(source: SourceSection, number: int, row: dict) -> Example:
    try:
        return example_of(row)
    except NotUnderstood as problem:
        raise Refusal(f"{place_of(source, number)} {problem}") from None


def needs_of(sources: Iterable[SourceSection], most: int | None = None) -> tuple[Needs, bool]:
    """What the conversations of all sources ask of a template, and whether there are any.

    most: rows looked at of each source.
    """
    needs, chats = Needs(), False
    for source in sources:
        for _, example in islice(examples_of(source), most):
            needs, chats = needs | Needs.of(example), chats or example.is_chat
    return needs, chats


def render_source(source: SourceSection, renderer: Renderer, cut: Cut, vocabulary: int, file: Path) -> Counts:
    """Write a source's tokens and labels to an Arrow file; rows cut away are left out, as in TRL.

    vocabulary: rows of the model's embedding.

    Raises:
        Refusal: a row is not understood, has nothing to learn, or a token that the model does not
            have; or nothing is left of all rows.
    """
    counts = Counts(source.path, keeps_end=cut.keeps_end)
    with written_whole(file) as aside, pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        made = _rendered(source, renderer, cut, vocabulary, counts)
        with Progress(TextColumn(SHOWN, markup=False), transient=True, disable=not sys.stdout.isatty()) as progress:
            task = progress.add_task(f"rendering {source.path}", total=None)
            while batch := list(islice(made, AT_ONCE)):
                columns = [[example.input_ids for example in batch], [example.labels for example in batch]]
                writer.write_batch(pa.record_batch([pa.array(c, pa.list_(pa.int32())) for c in columns], schema=SCHEMA))
                progress.advance(task, len(batch))
        if counts.dropped == counts.rows:
            raise Refusal(
                f"{source.path}: after the cut at training.max_length {cut.length} no example has a token left that is "
                "trained on"
            )
    return counts


def first_counts(source: SourceSection, renderer: Renderer, cut: Cut, vocabulary: int, most: int) -> Counts:
    """What is found in a source's first rows; nothing is written.

    Raises:
        Refusal: as `render_source`, but for what is left of all rows.
    """
    counts = Counts(source.path, most, cut.keeps_end)
    for _ in _rendered(source, renderer, cut, vocabulary, counts):
        pass
    return counts


def _rendered(
    source: SourceSection, renderer: Renderer, cut: Cut, vocabulary: int, counts: Counts
) -> Iterator[Rendered]:
    """A source's examples that have something to learn after the cut, whole; counts is kept up."""
    unused: set[str] = set()
    in_turns: set[str] = set()
    for number, row in islice(rows_of(source), counts.first):
        example = _understood(source, number, row)
        unused |= row.keys() - columns_read(row)
        in_turns |= {key for message in example.messages for key in message}
        counts.undefined += not example.tools and bool(example.called)
        for name in example.called - example.listed if example.tools else ():
            counts.unlisted[name] = counts.unlisted.get(name, 0) + 1
        counts.unanswered += example.is_chat and not example.answered
        rendered = _row_rendered(partial(place_of, source, number), example, renderer, vocabulary, counts.ends)
        for token in renderer.brought_by(example):
            counts.brought[token] = counts.brought.get(token, 0) + 1
        for what in rendered.lost:
            counts.lost[what] = counts.lost.get(what, 0) + 1
        counts.rows, counts.tokens = counts.rows + 1, counts.tokens + len(rendered.input_ids)
        counts.learned += rendered.learned
        counts.longest = max(counts.longest, len(rendered.input_ids))
        kept = Rendered(cut.of(rendered.input_ids), cut.of(rendered.labels))
        counts.cut += len(kept.input_ids) < len(rendered.input_ids)
        if kept.learned:
            yield rendered
            continue
        counts.dropped += 1
        if counts.dropped <= NAMED:
            counts.dropped_lines.append(number)
    counts.unused = sorted(unused)
    template = renderer.template.text if renderer.template else ""
    counts.unused_in_turns = sorted(key for key in in_turns - UNDERSTOOD if key not in template)


def _row_rendered(
    place: Callable[[], str], example: Example, renderer: Renderer, vocabulary: int, ends: dict[str, int]
) -> Rendered:
    """One row's tokens and labels.

    place: of the row, for sentences; ends: counts chats by the token that ends what is learned.
    """
    if example.is_chat and not any(message["role"] == "assistant" for message in example.messages):
        raise Refusal(f"{place()} is a chat without an answer of the assistant's, so there is nothing to learn")
    try:
        rendered = renderer.render(example)
    except NotUnderstood as problem:
        raise Refusal(f"{place()} {problem}") from None
    if not rendered.learned:
        raise Refusal(f"{place()} has no token to learn")
    if example.is_chat and (example.answered or renderer.only_assistant):
        learned = [label for label in rendered.labels if label != NOT_LEARNED]
        end = renderer.end_of(learned)
        if end is not None and learned[-2:] == [renderer.tokenizer.convert_tokens_to_ids(end)] * 2:
            raise Refusal(f"{place()}: the answer ends in {end}, which the template adds; take it out of the data")
        if end is None:
            raise Refusal(
                f"{place()}: what ends the assistant's turn is not learned, so the model would never learn to stop; "
                "the template's marks ({% generation %}) must hold it, as one given by training.chat_template_path can"
            )
        ends[end] = ends.get(end, 0) + 1
    if (largest := max(rendered.input_ids)) >= vocabulary:
        token = renderer.tokenizer.convert_ids_to_tokens(largest)
        raise Refusal(f"{place()} has the token {token!r} (id {largest}), the model's embedding has {vocabulary} rows")
    return rendered


def examples_in(data: DataSection) -> int:
    """Examples of an epoch, of a mix about; what a hub's data set does not say counts as one."""
    total = sum(source.weight for source in data.train)
    counts = [
        count_of(source) or 1 if not is_local(source) else sum(1 for _ in rows_of(source)) for source in data.train
    ]
    return round(max(n * total / source.weight for n, source in zip(counts, data.train, strict=True)))


def mixed(files: list[Path], sources: list[SourceSection], seed: int) -> Dataset:
    """All sources as one data set.

    Several are drawn in proportion to their weights until each is seen whole (small ones repeat).
    """
    loaded = [Dataset.from_file(str(file)) for file in files]
    if len(loaded) == 1:
        return loaded[0]
    total = sum(source.weight for source in sources)
    shares = [source.weight / total for source in sources]
    return interleave_datasets(loaded, probabilities=shares, seed=seed, stopping_strategy="all_exhausted")


@dataclass(frozen=True)
class RenderedFolder:
    """The folder of a recipe's examples as tokens, what was found, and what they were made from."""

    folder: Path

    def needs(self, data: DataSection, inputs: dict[str, Any]) -> tuple[Needs, bool]:
        """As `needs_of` all sources; as it was found where the examples are kept of the same data.

        inputs: of the data.
        """
        counted = self._counted()
        if counted is not None and counted["inputs"]["data"] == json.loads(json.dumps(inputs)):
            return Needs(**counted["needs"]), counted["chats"]
        return needs_of(data.sources)

    def render(self, data: DataSection, rendering: Rendering, vocabulary: int, inputs: dict[str, Any]) -> list[Counts]:
        """Make them, unless they are there from the same inputs; the held-out ones come last."""
        counted = self._counted()
        if counted is not None and counted["inputs"] == json.loads(json.dumps(inputs)):
            return [Counts(**count) for count in counted["counts"]]
        remove(self.folder)
        counts = [
            render_source(source, rendering.renderer, rendering.loss.cut, vocabulary, self._file(i))
            for i, source in enumerate(data.sources)
        ]
        asked = {"needs": asdict(rendering.needed[0]), "chats": rendering.needed[1]}
        counted = {"inputs": inputs, **asked, "counts": [asdict(count) for count in counts]}
        write_json(self.folder / "counts.json", counted)
        return counts

    def load(self, data: DataSection, seed: int) -> tuple[Dataset, Dataset | None]:
        """What is trained on, mixed, and what is held out."""
        train = mixed([self._file(i) for i in range(len(data.train))], data.train, seed)
        return train, Dataset.from_file(str(self._file(len(data.train)))) if data.heldout else None

    def _file(self, i: int) -> Path:
        return self.folder / f"{i}.arrow"

    def _counted(self) -> dict[str, Any] | None:
        file = self.folder / "counts.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
