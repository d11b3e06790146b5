"""How fast what leaves a run is written and proven: put an implant into a checkpoint, compare byte
for byte, take it out again.

    python eval/benchmarks/export.py                        # a random checkpoint of Qwen2.5-0.5B
    python eval/benchmarks/export.py --shape llama-3.1-8b   # 16 GB; the disk needs three times that

Writes eval/reports/export.json and .md: gigabytes a second of the checkpoint, and how far the
process grew.
"""

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shapes import SHAPES
from transformers import AutoModelForCausalLM

from loki_ds.device import peak_memory
from loki_ds.export.checkpoint import apply_to_checkpoint, read_rows, revert_in_checkpoint
from loki_ds.export.implant_file import Implant, LayerRows
from loki_ds.model.anatomy import sites
from loki_ds.selection import select_random
from loki_ds.verification import verify

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import keep, paragraph, table, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    shape = parser.parse_args().shape
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), shape)
    keep("export", found)
    write_report(found)


def measure(folder: Path, shape: str) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=torch.bfloat16)
    model.save_pretrained(folder / "base", max_shard_size="2GB")
    weights = [down.weight for site in sites(model) for down in site.downs]
    positions = select_random(len(weights), weights[0].shape[0], 10, seed=0)
    del model, weights
    size = sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors"))
    rows = read_rows(folder / "base", positions)
    layers = {i: LayerRows(torch.tensor(positions.rows[i]), before, before + 1) for i, before in rows.items()}
    implant = Implant(len(positions.rows), layers)
    work: dict[str, Callable[[], Any]] = {
        "apply": lambda: apply_to_checkpoint(folder / "base", implant, folder / "model"),
        "verify": lambda: verify(folder / "base", folder / "model", positions),
        "revert": lambda: revert_in_checkpoint(folder / "model", implant, folder / "back"),
    }
    steps = {name: timed(do) for name, do in work.items()}
    assert verify(folder / "base", folder / "back", None).identical_outside_rows
    return {"shape": shape, "bytes": size, "machine": platform.machine(), "steps": steps}


def timed(do: Callable[[], Any]) -> dict[str, float]:
    started = time.monotonic()
    grown = peak_memory(do)
    return {"seconds": time.monotonic() - started, "peak_bytes": grown}


def write_report(found: dict[str, Any]) -> None:
    rows = [
        (
            name,
            f"{one['seconds']:.1f}",
            f"{found['bytes'] / 1e9 / one['seconds']:.2f}",
            f"{one['peak_bytes'] / 2**20:.0f} MiB",
        )
        for name, one in found["steps"].items()
    ]
    about = (
        f"`python eval/benchmarks/export.py --shape {found['shape']}`: a checkpoint of {found['bytes'] / 1e9:.1f} GB "
        f"in bfloat16, a tenth of each layer's rows, {found['machine']}. Writing ends with the bytes on the disk "
        "(fsync). Mapped files count as memory here; the system takes them back when others need it."
    )
    write("export", "What leaves a run", paragraph(about), table(["", "s", "GB/s", "the process grew by"], rows))


if __name__ == "__main__":
    main()
