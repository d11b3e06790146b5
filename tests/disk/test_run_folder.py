"""Results are whole or not there, and belong to the inputs they were made from."""

import hashlib
import json
from pathlib import Path

import pytest

from loki_ds.disk.files import digest_of, remove, write_json, written_whole
from loki_ds.disk.run_folder import RunFolder
from loki_ds.refusal import Refusal


def test_a_stage_is_finished_for_the_same_inputs_only(tmp_path: Path) -> None:
    run, inputs = RunFolder(tmp_path), {"quota": 10, "data": {"digest": "a", "files": ("x",)}}
    assert not run.finished("select", inputs)
    run.finish("select", inputs)
    assert run.finished("select", inputs)
    with pytest.raises(
        Refusal, match="'select' was made with quota 10, now it is 20; choose another folder with run=FOLDER"
    ):
        run.finished("select", {**inputs, "quota": 20})
    with pytest.raises(Refusal, match='digest "a", now it is "b"'):
        run.finished("select", {**inputs, "data": {"digest": "b", "files": ["x"]}})


def fail_half_way(path: Path) -> None:
    with written_whole(path) as aside:
        aside.write_text("half")
        raise InterruptedError


def test_nothing_half_written_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(InterruptedError):
        fail_half_way(path)
    assert path.read_text() == "old"
    with written_whole(path) as aside:
        aside.write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "new"


def test_folders_are_replaced_whole(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with written_whole(tmp_path / "folder") as aside:
            aside.mkdir()
            (aside / content).touch()
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["two"]


def test_a_file_takes_no_folders_place(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/precious").touch()
    with pytest.raises(Refusal, match="runs: a folder stands where a file is to be written; name a file"):
        write_json(tmp_path / "runs", {})
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "precious"]


def test_what_python_leaves_beside_code_is_no_other_code(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("x = 1")
    before = digest_of(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/own.cpython-311.pyc").write_bytes(b"x")
    assert digest_of(tmp_path) == before


def test_a_folder_takes_any_place_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    """Of a file, of a link to nowhere, and after a kill between two renames."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".killed.old").mkdir()
    for name in ("file", "link", "killed"):
        with written_whole(tmp_path / name) as aside:
            aside.mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "killed", "link"]
    assert all(path.is_dir() and not path.is_symlink() for path in tmp_path.iterdir())


def test_of_a_link_the_link_is_replaced(tmp_path: Path) -> None:
    """A model's folder that was put on another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/weights").touch()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    with written_whole(tmp_path / "model") as aside:
        aside.mkdir()
    assert not list((tmp_path / "model").iterdir())
    assert (tmp_path / "disk/weights").exists()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    remove(tmp_path / "link")
    assert (tmp_path / "disk/weights").exists()


def test_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = digest_of(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = digest_of(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, renamed, digest_of(tmp_path)}) == 3


def test_results_are_recorded_with_their_digests(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    (folder.root / "model").mkdir(parents=True)
    (folder.root / "model/weights").write_text("w")
    (folder.root / "positions.json").write_text("[[0]]")
    folder.record(folder.positions, folder.root / "model")
    folder.record(folder.positions)
    recorded = json.loads(folder.manifest.read_text())
    assert recorded == {
        "model/weights": hashlib.sha256(b"w").hexdigest(),
        "positions.json": hashlib.sha256(b"[[0]]").hexdigest(),
    }
