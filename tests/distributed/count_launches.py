"""What test_gpus.py starts on one pretended GPU: launches, and waits of the host for the device,
that one more layer costs, in a batch of the sweep and in a step of `mask`."""

import sys
from collections.abc import Callable
from pathlib import Path

import fake_cuda
import torch
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import build

from loki_ds.attribution.sweep import Sweep
from loki_ds.distributed.ranks import end_process
from loki_ds.implanting.mask import keep_through_steps, train_only_rows
from loki_ds.selection.positions import Positions

PROMPTS = [list(range(3, 3 + length)) for length in (40, 38, 37)]


def model_of(layers: int) -> PreTrainedModel:
    return build("llama", torch.bfloat16, num_hidden_layers=layers, max_position_embeddings=128).cuda()


def sweep(layers: int) -> Callable[[], object]:
    made = Sweep(model_of(layers).requires_grad_(False))
    return lambda: made.run(PROMPTS)


def mask_step(layers: int) -> Callable[[], object]:
    model, ids = model_of(layers), torch.tensor([PROMPTS[0]]).cuda()
    frozen = train_only_rows(model, Positions([[0, 1]] * layers))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    keep_through_steps(optimizer, frozen)

    def step() -> None:
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def a_layer(make: Callable[[int], Callable[[], object]]) -> list[float]:
    """Launches and waits that one of eight layers adds to four, once all is warm."""
    counts = []
    for layers in (4, 8):
        work = make(layers)
        work()
        fake_cuda.reset_counts()
        work()
        counts.append(fake_cuda.counts())
    return [(more - less) / 4 for less, more in zip(*counts, strict=True)]


if __name__ == "__main__":
    for name, make in {"sweep": sweep, "mask": mask_step}.items():
        launches, waits = a_layer(make)
        print(f"{name}: {launches:g} launches, {waits:g} waits a layer")
    end_process()
