"""The libraries as they are installed, held against the newest that the project was tested with."""

from importlib.metadata import version

from packaging.version import Version

# The newest of each that the whole suite has passed with. What is newer is said, not refused:
# what is borrowed from inside a library fails in tests/test_borrowed.py by its name.
TESTED = {
    "torch": "2.14",
    "deepspeed": "0.19.8",
    "transformers": "5.24",
    "accelerate": "1.15",
    "trl": "1.16",
    "peft": "0.21",
    "datasets": "5.2",
    "lm_eval": "0.4.13",
}


def installed() -> dict[str, str]:
    """Each library's version."""
    return {name: version(name) for name in TESTED}


def newer_than_tested(versions: dict[str, str]) -> list[str]:
    """Libraries newer than any tested, each with the tested one: `trl 1.17.0 (tested: 1.16)`."""
    return [
        f"{name} {there} (tested: {TESTED[name]})"
        for name, there in versions.items()
        if Version(there).release[: len(Version(TESTED[name]).release)] > Version(TESTED[name]).release
    ]
