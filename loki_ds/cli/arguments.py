"""What each command of `loki-ds` takes."""

from pathlib import Path
from typing import Any

from loki_ds.disk.run_folder import STAGES
from loki_ds.recipe.shipped import resolve_file
from loki_ds.recipe.strategies import STRATEGIES

GATE = "--gate"
Arguments = list[tuple[str, dict[str, Any]]]


def _path(said: str) -> Path:
    """A path with its `~`, which a shell leaves in `--out=~/runs`."""
    return Path(said).expanduser()


def _shipped(said: str) -> Path:
    """A folder, or one that travels with the package."""
    return Path(resolve_file(str(_path(said))))


def _paths(*names: str) -> Arguments:
    return [(name, {"type": Path}) for name in names]


def _overrides(said: str | None = None) -> Arguments:
    return [("overrides", {"nargs": "*", "default": [], "metavar": "key=value", "help": said})]


GATED: Arguments = [(GATE, {"action": "store_true", "help": "end with 0 when all is kept, 2 lost, 3 not shown"})]
JSON: Arguments = [("--json", {"action": "store_true", "help": "the same as JSON on the standard output"})]
RECIPE: Arguments = [("recipe", {"help": "file or name"}), *_overrides()]
ARGUMENTS: dict[str, Arguments] = {
    "doctor": JSON,
    "schema": [],
    "recipes": [("name", {"nargs": "?", "help": "one to copy, with those that it is made of, to recipes/"})],
    "new": [
        ("file", {"type": _path, "help": "the recipe to write"}),
        ("--model", {"help": "folder or hub id of the base"}),
        ("--data", {"help": "file or hub id of what is learned"}),
        ("--keep", {"help": "suite of what must stay, such as quick"}),
        ("--gpus", {"type": int, "help": "GPUs of this node; 0 for a processor"}),
    ],
    "completion": [("shell", {"choices": ("bash", "zsh", "fish")})],
    "run": [
        *RECIPE,
        ("--gpus", {"type": int, "help": "GPUs of this node; all of them when not given, 0 for a processor"}),
        ("--until", {"choices": STAGES, "default": STAGES[-1], "help": "the last stage (retain)"}),
    ],
    "rates": [
        *RECIPE,
        ("--rates", {"nargs": "+", "required": True, "help": "learning rates to try, such as 5e-4 1e-3 2e-3"}),
        ("--steps", {"type": int, "default": 20, "help": "of each training (default 20)"}),
        ("--gpus", {"type": int, "help": "GPUs of this node; all of them when not given, 0 for a processor"}),
    ],
    "check": [*RECIPE, *JSON],
    "plan": [
        *RECIPE,
        ("--ranks", {"type": int, "default": 8, "help": "GPUs, of all nodes together (default 8)"}),
        ("--gpu", {"help": "h100, a100-80, ...; when not given, this machine's, or an h100"}),
        ("--memory", {"type": float, "help": "GiB of a GPU, instead of the named one's"}),
        ("--tflops", {"type": float, "help": "TFLOP/s as measured in training, instead of the named GPU's"}),
        *JSON,
    ],
    "select": [
        *_paths("run"),
        ("--quota", {"type": float, "required": True, "help": "percent of each layer's rows"}),
        ("--strategy", {"choices": STRATEGIES, "default": "layer_balanced"}),
        ("--seed", {"type": int, "default": 0, "help": "of the strategy random"}),
        ("--out", {"type": _path, "required": True}),
    ],
    "positions": _paths("first", "second"),
    "apply": [("base", {"type": _shipped}), *_paths("implant", "out")],
    "revert": _paths("model", "implant", "out"),
    "verify": [("base", {"type": _shipped}), *_paths("model", "positions")],
    "tune": [*_paths("run"), *_overrides("tune.*, retention.* and model.* as in a recipe")],
    "retain": [
        ("base", {"help": "folder or hub id"}),
        ("model", {"help": "folder, hub id, or folder of a PEFT adapter on the base"}),
        *_overrides("retention.* and model.* as in a recipe"),
        ("--out", {"type": _path, "default": Path("retained"), "help": "folder of report and answers (retained)"}),
        *GATED,
        *JSON,
    ],
    "report": [
        *_paths("run"),
        ("--samples", {"type": _path, "help": "write base/ and model/ there, as lm-eval logs samples"}),
        *GATED,
    ],
    "compare": [
        ("runs", {"nargs": "+", "type": Path}),
        ("--out", {"type": _path, "help": "folder for compare.html, compare.json and the picture"}),
    ],
}
