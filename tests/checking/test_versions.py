"""Libraries newer than any that was tested are named."""

import re
from pathlib import Path

from conftest import ROOT
from packaging.version import Version

from loki_ds.checking.versions import TESTED, installed, newer_than_tested

PINS = re.compile(r"^([\w-]+)==(\S+)$", re.MULTILINE)


def test_what_is_pinned_is_not_newer() -> None:
    pins = {name.replace("-", "_"): there for name, there in PINS.findall(Path(ROOT, "constraints.txt").read_text())}
    assert newer_than_tested({name: pins[name] for name in TESTED}) == []


def test_a_newer_minor_version_is_named_and_a_newer_patch_is_not() -> None:
    newest = {"trl": "1.17.0", "peft": "0.21.9", "deepspeed": "0.19.9", "torch": "2.14.1+cu130"}
    assert newer_than_tested(newest) == ["trl 1.17.0 (tested: 1.16)", "deepspeed 0.19.9 (tested: 0.19.8)"]


def test_every_library_is_installed() -> None:
    assert all(Version(there) for there in installed().values())
