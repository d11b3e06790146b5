"""Files written whole: aside first, brought to the disk, then put in place; and their digests.

Knows nothing of what they hold.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loki_ds.refusal import Refusal


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path for a file or folder, which takes its place at `path` if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(path)
    remove(aside)
    yield aside
    put_in_place(path)


def aside_of(path: Path) -> Path:
    """Where a file or folder is written before it is whole."""
    return path.with_name(f".{path.name}.unfinished")


def put_in_place(path: Path) -> None:
    """Bring what was written aside to the disk, then to its place.

    Raises:
        Refusal: a file would take the place of a folder, and of all that is in it.
    """
    aside = aside_of(path)
    if aside.is_file() and path.is_dir():
        remove(aside)
        raise Refusal(f"{path}: a folder stands where a file is to be written; name a file")
    for file in [aside] if aside.is_file() else sorted(p for p in aside.rglob("*") if p.is_file()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    old = path.with_name(f".{path.name}.old")
    remove(old)  # what a kill in between left
    if (path.is_dir() or aside.is_dir()) and os.path.lexists(path):  # a folder takes no place in one go
        path.rename(old)
        aside.rename(path)
        remove(old)
    else:
        os.replace(aside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)


def is_there(file: Path) -> bool:
    """Whether a file is there by its folder's listing, as NFS may deny a new file for a minute."""
    try:
        return file.name in os.listdir(file.parent)
    except FileNotFoundError:
        return False


def publish(file: Path, shared: Path) -> None:
    """Copy a file where several runs may write at once: aside by a unique name, then renamed."""
    shared.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=shared.parent, prefix=f".{shared.name}.")
    with os.fdopen(handle, "wb") as copy:
        copy.write(file.read_bytes())
        os.fsync(copy.fileno())
    shutil.copymode(file, aside)  # mkstemp's is for its maker alone
    os.replace(aside, shared)


def holds_logs(folder: Path) -> bool:
    """Whether lm-eval or lighteval kept a model's answers there; a model's folder may hold some,
    too, and is none.
    """
    is_model = any((folder / name).exists() for name in ("config.json", "adapter_config.json"))
    kept = (file for pattern in ("samples_*.jsonl", "details_*.parquet") for file in folder.rglob(pattern))
    return folder.is_dir() and not is_model and any(kept)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there; of a link the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    with written_whole(path) as aside:
        aside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def digest_of(*paths: Path) -> str:
    """SHA-256 over the names and bytes of files, and of all files in folders but Python's caches,
    which come by reading.
    """
    whole = hashlib.sha256()
    for path in paths:
        for file in _files_in(path) if path.is_dir() else [path]:
            whole.update(f"{file.name}:{sha256(file)};".encode())
    return whole.hexdigest()


def _files_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def weights_digest(folder: Path) -> str:
    """SHA-256 over the safetensors files of a checkpoint folder."""
    return digest_of(*sorted(folder.glob("*.safetensors")))


def sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
