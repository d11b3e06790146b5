"""What lies beside a model and cannot be read is one sentence with its file and its reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from loki_ds.model.base import load_configuration, load_tokenizer, locate_model, stop_tokens
from loki_ds.recipe.sections import ModelSection
from loki_ds.refusal import Refusal


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "recipes/tiny/model", tmp_path / "model")
    return tmp_path / "model"


def put(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def read(model: Path, trusted: bool) -> None:
    config = load_configuration(model, trusted)
    load_tokenizer(model, trusted)
    stop_tokens(model, config)


CODE = {"auto_map": {"AutoConfig": "own.Config"}, "model_type": "own"}


@pytest.mark.parametrize(
    ("break_it", "trusted", "says"),
    [
        (
            put("tokenizer.json", '{"model": {"type": "Newer"}}'),
            False,
            "no tokenizer that transformers can .*: .+",
        ),
        (put("tokenizer.json", '{"model": '), False, "no tokenizer that transformers can read beside the model: .+"),
        (put("config.json", json.dumps(CODE)), False, r"it brings code of its own \(model.trust_remote_code=true runs"),
        (put("config.json", json.dumps(CODE)), True, "not a configuration that transformers can read: .+"),
        (put("generation_config.json", '{"cache_implementation": "foo"}'), False, "transformers does not take it: .+"),
        (
            put("generation_config.json", '{"max_new_tokens": 0}'),
            False,
            "config.json: transformers does not",
        ),
        (put("generation_config.json", "{nothing"), False, "generation_config.json: transformers does not take it"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    break_it: Callable[[Path], object], trusted: bool, says: str, model: Path
) -> None:
    break_it(model)
    (model / "own.py").write_text("import package_that_is_not_here\n")
    with pytest.raises(Refusal, match=says):
        read(model, trusted)


def test_an_adapters_folder_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(Refusal, match=r"a PEFT adapter \(adapter_config\.json\), not a model; name its base"):
        locate_model(ModelSection(path=str(tmp_path)))
