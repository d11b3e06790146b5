"""Merge a baseline's PEFT adapter into its base, in a process of its own (a second model must not
load beside live ZeRO-3).

`python -m loki_ds.export.merge BASE ADAPTER OUT SECTION`, the last the recipe's `model` in JSON.
Stock PEFT and transformers; nothing of LoKI.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from loki_ds.distributed.launcher import environment_of_one_process
from loki_ds.export.checkpoint import write_trained
from loki_ds.model.adapters import with_adapter
from loki_ds.model.classes import load_whole
from loki_ds.recipe.sections import ModelSection
from loki_ds.refusal import Refusal


def merge_adapter(base: Path, adapter: Path, out: Path, section: ModelSection) -> None:
    """Run the merge in a fresh process."""
    command = [sys.executable, "-m", "loki_ds.export.merge", str(base), str(adapter), str(out)]
    done = subprocess.run([*command, section.model_dump_json()], check=False, env=environment_of_one_process())
    if done.returncode:
        raise Refusal(f"{adapter}: the adapter could not be merged into {base}; PEFT's own message is above")


def main() -> None:
    base, adapter, out = map(Path, sys.argv[1:4])
    section = ModelSection.model_validate_json(sys.argv[4])
    remote = section.trust_remote_code
    model = load_whole(base, remote, dtype=getattr(torch, section.dtype))
    merged: Any = with_adapter(model, adapter).merge_and_unload()
    write_trained(base, merged, merged.state_dict(), out)


if __name__ == "__main__":
    main()
