"""Many variants of one base, put into it in place, asked, and taken out again.

    python eval/studies/one_base.py VARIANTS.json FOUND.json

VARIANTS: `base`, a model's folder; `variants`, by name: `zeroed`, a positions file, or `trained`, a
model's folder with a `scale`, or neither: the base; `asks`, sections like a recipe's `retention`.
FOUND, by variant: every task's documents, and the mean of each of its metrics. What is there is not
asked again. On CPU and GPU alike.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from loki_ds.dial.scale import Scale
from loki_ds.dial.scaled import scaled_tensors
from loki_ds.model.anatomy import sites
from loki_ds.positions import Positions
from loki_ds.recipe import RetentionSection
from loki_ds.retention.arm import evaluated, load
from loki_ds.retention.parcels import ArmResult, Request
from loki_ds.retention.question import Arm, Question
from loki_ds.run_folder import write_json
from loki_ds.tasks import look_at_tasks

Found = dict[str, dict[str, Any]]  # by task: its documents, and its metrics' means by their names


def main() -> None:
    work, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    base = Path(work["base"])
    requests = [request_of(base, RetentionSection(**section)) for section in work["asks"]]
    model, found = load(requests[0]), json.loads(out.read_text()) if out.exists() else {}
    for name, variant in work["variants"].items():
        if name in found:
            continue
        with put_in(model.model, base, variant), tempfile.TemporaryDirectory() as folder:
            asked = [requests[i] for i in variant.get("asked", range(len(requests)))]
            found[name] = {}
            for request in asked:
                found[name] |= means(evaluated(model, request, Path(folder)))
        write_json(out, found)


def request_of(base: Path, section: RetentionSection) -> Request:
    names = [name for group in section.groups for name in group.tasks]
    tasks = look_at_tasks(names, section.include_path, False, "retention")
    return Question(section, tasks, "float32", False).request(Arm(base, digest=""))


def means(result: ArmResult) -> Found:
    found: Found = {}
    for name, task in result["tasks"].items():
        scores = torch.tensor([sample["scores"] for sample in task["samples"]], dtype=torch.float64)
        of_metrics = {metric["name"]: float(scores[:, i].mean()) for i, metric in enumerate(task["metrics"])}
        found[name] = {"n": len(task["samples"]), **of_metrics}
    return found


@contextmanager
def put_in(model: Module, base: Path, variant: dict[str, Any]) -> Iterator[None]:
    """The variant's tensors in the model, for a while."""
    own = dict(model.named_parameters())
    changed = dict(changes(model, base, variant))
    before = {name: own[name].detach().clone() for name in changed}
    write(own, changed)
    yield
    write(own, before)


def changes(model: Module, base: Path, variant: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    if "trained" in variant:
        yield from scaled_tensors(base, Path(variant["trained"]), Scale(variant["scale"]))
    elif "zeroed" in variant:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for rows, site in zip(Positions.load(variant["zeroed"]).rows, sites(model), strict=True):
            (down,) = site.downs
            weight = down.weight.detach().clone()
            weight[rows] = 0
            yield names[id(down.weight)], weight


@torch.no_grad()
def write(own: Mapping[str, Tensor], tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


if __name__ == "__main__":
    main()
