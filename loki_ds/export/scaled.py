"""What was trained, at another scale: values between the base's and the trained ones, rounded to
their own dtype. Scale 0 gives the base's bits, 1 those that were trained.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from loki_ds.disk.files import written_whole
from loki_ds.export.checkpoint import copy_model
from loki_ds.export.implant_file import Implant
from loki_ds.model.files import open_weights, same_bits


def between(base: Tensor, trained: Tensor, share: float) -> Tensor:
    """`base + share (trained - base)`, in float64 before it is rounded."""
    if share in (0, 1):
        return (trained if share else base).clone()  # safetensors writes no storage twice
    lies = torch.lerp(base.double(), trained.double(), share).to(base.dtype)
    return torch.where(base == trained, base, lies)  # what did not change keeps its bits, -0.0 too


def scaled_implant(trained: Implant, scale: float) -> Implant:
    layers = {
        i: replace(rows, implanted=between(rows.base, rows.implanted, scale)) for i, rows in trained.layers.items()
    }
    return replace(trained, layers=layers, facts={**trained.facts, "scale": f"{scale:g}"})


def scaled_tensors(base: Path, trained: Path, scale: float) -> Iterator[tuple[str, Tensor]]:
    """The changed tensors of a checkpoint one by one, each with the same share of its change."""
    with open_weights(base) as before, open_weights(trained) as after:
        for name in sorted(before.names):
            old, new = before.read(name), after.read(name)
            if not same_bits(old, new):
                yield name, between(old, new, scale)


def scaled_adapter(trained: Path, scale: float, out: Path) -> None:
    """An adapter of low rank whose product is scaled, by its `lora_A`."""
    with written_whole(out) as aside:
        aside.mkdir(parents=True)
        (aside / "adapter_config.json").write_bytes((trained / "adapter_config.json").read_bytes())
        tensors = load_file(trained / "adapter_model.safetensors")
        for name in tensors:
            if ".lora_A." in name:
                tensors[name] = tensors[name] * scale
        with safe_open(trained / "adapter_model.safetensors", "pt") as file:
            save_file(tensors, aside / "adapter_model.safetensors", file.metadata())


def keep(trained: Path, kept: Path) -> None:
    """A copy of a checkpoint, an adapter or an implant file, unless there is one."""
    if kept.exists() or not trained.exists():
        return
    with written_whole(kept) as aside:
        if trained.is_file():
            aside.write_bytes(trained.read_bytes())
        elif (trained / "adapter_config.json").exists():
            aside.mkdir(parents=True)
            for file in sorted(trained.iterdir()):
                (aside / file.name).write_bytes(file.read_bytes())
        else:
            copy_model(trained, aside)
