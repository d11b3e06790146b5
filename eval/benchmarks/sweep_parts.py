"""What a sweep's time goes into: products, the family's other arithmetic, moving data, Python.

    python eval/benchmarks/sweep_parts.py        # eval/reports/sweep_parts.*, a few minutes

Processor time of one thread by torch's own profiler, on a random model of Qwen2.5-0.5B's size.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from attribution import STEPS, TOGETHER, build
from shapes import SHAPES
from torch.profiler import ProfilerActivity, profile

from loki_ds.attribution.sweep import Sweep

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import command, keep, listed, paragraph, table, where, write

KINDS = {  # a part of what a sweep takes, by the beginnings of torch's names; the last takes the rest
    "products of matrices": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product",),
    "activations, gates, norms": ("aten::mul", "aten::silu", "aten::pow", "aten::mean", "aten::rsqrt", "aten::add"),
    "softmax over the vocabulary": ("aten::_softmax", "aten::logsumexp", "aten::exp", "aten::sub"),
    "moving data": ("aten::copy_", "aten::cat", "aten::fill_", "aten::index", "aten::gather", "aten::stack"),
    "other operations": ("",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048])
    lengths = parser.parse_args().lengths
    torch.set_num_threads(1)
    sweep = Sweep(build(SHAPES["qwen2.5-0.5b"], torch.float32), steps=STEPS)
    sweep.run([[1, 2, 3]])  # first-time costs of the libraries belong to nobody
    found = {str(length): parts(sweep, length) for length in lengths}
    about = f"""`{command()}`: {listed(where("torch", "transformers"))}. Seconds of processor time for {TOGETHER}
        prompts together (one of 2,048 tokens), {STEPS} steps, and their share of the whole."""
    rows = [
        [kind, *(f"{one[kind]:.2f} ({one[kind] / sum(one.values()):.1%})" for one in found.values())]
        for kind in found[str(lengths[0])]
    ]
    rows.append(["whole", *(f"{sum(one.values()):.2f}" for one in found.values())])
    keep("sweep_parts", {"where": where("torch", "transformers"), "seconds": found})
    headings = ["part", *(f"{length} tokens" for length in lengths)]
    write("sweep_parts", "What a sweep's time goes into", paragraph(about), table(headings, rows))


def parts(sweep: Sweep, length: int) -> dict[str, Any]:
    """Seconds of every part; what no operation took is Python's."""
    count, generator = (1 if length > 1000 else TOGETHER), torch.Generator().manual_seed(length)
    prompts = torch.randint(0, 1000, (count, length), generator=generator).tolist()
    started = time.process_time()
    sweep.run(prompts)
    whole = time.process_time() - started
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        sweep.run(prompts)
    found = dict.fromkeys(KINDS, 0.0)
    for one in profiled.key_averages():
        kind = next(kind for kind, names in KINDS.items() if one.key.startswith(names))
        found[kind] += one.self_cpu_time_total / 1e6
    total = sum(found.values())
    scaled = {kind: seconds * min(1.0, whole / total) for kind, seconds in found.items()}  # the profiler's own time
    return {**scaled, "Python": max(0.0, whole - sum(scaled.values()))}


if __name__ == "__main__":
    main()
