"""The authors' JSON is read and written as it is; anything else is refused by name."""

import json
from pathlib import Path

import pytest

from loki_ds.refusal import Refusal
from loki_ds.selection.blocks import Block, down_names, place_in_words
from loki_ds.selection.positions import Positions


def test_a_file_comes_back_with_the_same_digest(tmp_path: Path) -> None:
    positions = Positions([[1, 3], [0, 2]])
    positions.save(tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text()) == [[1, 3], [0, 2]]
    assert Positions.load(tmp_path / "p.json").digest == positions.digest


def test_order_in_the_file_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("[[3, 1]]")
    assert Positions.load(tmp_path / "p.json") == Positions([[1, 3]])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("{}", "list of row lists"),
        ("[]", "list of row lists"),
        ("[1, 2]", "list of row lists"),
        ("[[1.0]]", "layer 0 holds 1.0"),
        ("[[true]]", "layer 0 holds True"),
        ("[[0], [-1]]", "layer 1 holds -1"),
        ('[["a"]]', "layer 0 holds 'a'"),
        ("[[2, 2]]", "twice"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(Refusal, match=says):
        Positions.load(tmp_path / "p.json")


def test_overlap_is_the_share_of_common_rows() -> None:
    assert Positions([[0, 1], [2, 3]]).overlap(Positions([[1, 4], [2, 3]])) == 0.75
    assert Positions([[0, 1], []]).overlap(Positions([[0], []])) == 0.5
    assert Positions([[]]).overlap(Positions([[]])) == 1


@pytest.mark.parametrize(
    ("rows", "says"), [([[0]], "have 1 layers, the model has 2"), ([[0], [8]], "layer 1 selects row 8, .* rows 0 to 7")]
)
def test_positions_of_another_model_are_refused(rows: list[list[int]], says: str) -> None:
    with pytest.raises(Refusal, match=says):
        Positions(rows).check_fits([Block(name, 8, 16, name) for name in down_names(2)], "p.json")


def test_other_blocks_go_by_their_names_in_the_file(tmp_path: Path) -> None:
    positions = Positions([[3, 1], [0]], ("2.mlp.gate_proj", "2.self_attn.q_proj"))
    positions.save(tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text()) == {"2.mlp.gate_proj": [3, 1], "2.self_attn.q_proj": [0]}
    assert Positions.load(tmp_path / "p.json").by_name == {"2.mlp.gate_proj": [1, 3], "2.self_attn.q_proj": [0]}
    assert positions.overlap(Positions([[1, 2]], ("2.mlp.gate_proj",))) == pytest.approx(1 / 3)
    (tmp_path / "p.json").write_text('{"0.down": [1], "1.down": [2]}')  # the paper's rows by their names
    assert Positions.load(tmp_path / "p.json").digest == Positions([[1], [2]]).digest
    (tmp_path / "p.json").write_text('{"gate": [1]}')
    with pytest.raises(Refusal, match=r"'gate' is no name of rows, such as 3\.mlp\.gate_proj"):
        Positions.load(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("names", "place"),
    [
        (down_names(2), "down-projections"),
        (("0.mlp.gate_proj", "0.mlp.experts.gate_up_proj"), "gate and up projections"),
        (("0.linear_attn.out_proj", "0.down"), "down-projections, attention"),
    ],
)
def test_a_place_in_words(names: tuple[str, ...], place: str) -> None:
    assert place_in_words(names) == place
