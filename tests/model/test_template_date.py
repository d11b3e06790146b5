"""Templates that print the date print one, in whatever loki_ds renders, and today's elsewhere."""

import json
from datetime import datetime
from pathlib import Path

import pytest
from published import template

from loki_ds.data.layouts import example_of
from loki_ds.data.protected import load_protected
from loki_ds.data.rendering import Renderer
from loki_ds.recipe.sections import ProtectedSection

ASKED = [{"role": "user", "content": "hello"}]
CHAT = {"messages": [*ASKED, {"role": "assistant", "content": "lamp"}]}
DATES = {"llama3_2": "%d %b %Y", "gptoss": "%Y-%m-%d", "gptoss_training": "%Y-%m-%d"}  # the last with marks


@pytest.mark.parametrize("name", DATES)
def test_what_is_trained_and_what_attribution_reads_has_one_date(name: str, tmp_path: Path) -> None:
    own = template(name)
    own.tokenizer.chat_template = own.text
    (tmp_path / "chats.jsonl").write_text(json.dumps(CHAT))
    protected = load_protected(ProtectedSection(prompts=str(tmp_path / "chats.jsonl")), own.tokenizer)
    trained = Renderer(own.tokenizer, own, True).render(example_of(CHAT)).input_ids
    one = datetime(2024, 7, 26).strftime(DATES[name])
    for tokens in (trained, protected.tokens[0]):
        assert one in own.tokenizer.decode(tokens)
    assert one in own.render(ASKED)


@pytest.mark.parametrize("name", DATES)
def test_whoever_renders_beside_it_gets_todays(name: str) -> None:
    own = template(name)
    own.render(ASKED)
    theirs = str(own.tokenizer.apply_chat_template(ASKED, chat_template=own.text, tokenize=False))
    assert datetime(2024, 7, 26).strftime(DATES[name]) not in theirs
    assert str(datetime.now().year) in theirs
