"""One training step side by side, in one run: full, LoRA, the authors' LoKI Linear, and our `mask`,
`rows` and `lora`.

    # 8 layers, d_model 512, on the CPU
    python eval/benchmarks/training_step.py
    # on a GPU
    python eval/benchmarks/training_step.py --shape llama-3.1-8b --dtype bfloat16

Every method starts from the same random model and sees the same tokens, in a process of its own; on
a CPU the methods take turns, round by round, so a slow moment of the machine hits all of them.
Writes eval/reports/training_step.json and .md.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from shapes import SHAPES
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, PreTrainedModel
from turns import READY, STEP, in_turns

from loki_ds.distributed.device import on_cpu, peak_memory
from loki_ds.implanting.mask import keep_through_steps, train_only_rows
from loki_ds.implanting.rows import train_row_deltas
from loki_ds.model.anatomy import decoder_layers
from loki_ds.model.ffn import site_of
from loki_ds.model.row_blocks import blocks_of, row_blocks
from loki_ds.planning.dry_run import Tally
from loki_ds.planning.hardware import this_machines
from loki_ds.recipe.implant import LowRankSection
from loki_ds.selection.select import select_random

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import command, keep, listed, paragraph, table, where, write

NEURONS = "rows of gate and up"  # as many numbers as rows of down
DENSE = ("full", "LoRA r16, all linears", "authors' LoKI Linear", "mask", "rows", NEURONS, "lora (LoKI*)")
OF_EXPERTS = ("full", "LoRA r16, experts' down_proj", "mask", "rows", "lora (LoKI*)")
METHODS = tuple(dict.fromkeys(DENSE + OF_EXPERTS))
HEADINGS = [
    *("method", "step, ms", "products, ms", "tokens/s", "of LoRA's", "of full's", "TFLOP/s", "of the peak"),
    *("trainable", "optimizer", "reduced a step", "peak above the model"),
]
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_grouped_mm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8 layers, d_model 512")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--attention", help="transformers' name, by default what it takes for the shape")
    parser.add_argument("--quota", type=float, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="by default all that the shape's layers know")
    parser.add_argument(
        "--checkpointing", action="store_true", help="compute activations twice, as recipes for large models do"
    )
    arguments = parser.parse_args()
    arguments.methods = arguments.methods or (OF_EXPERTS if "moe" in arguments.shape else DENSE)
    together = [arguments.methods] if on_cpu() else [[name] for name in arguments.methods]  # such a model fills a GPU
    measured: dict[str, dict[str, Any]] = {}
    for names in together:
        measured |= measured_steps(arguments, names)
    write_report(arguments, measured)


def measured_steps(arguments: argparse.Namespace, names: list[str]) -> dict[str, dict[str, Any]]:
    """Median seconds of each method and what it holds."""
    found = in_turns(take_steps, names, arguments.rounds, arguments)
    return {name: {"seconds": statistics.median(seconds), **facts} for name, (seconds, facts) in found.items()}


def take_steps(name: str, asked: Connection, arguments: argparse.Namespace) -> None:
    """Steps of this method, and what one of them takes."""
    step, facts = make_step(arguments, name, "cpu" if on_cpu() else "cuda")
    peak = peak_memory(step)  # of the first step, so with the optimizer's state
    with Tally([]) as tally:
        step()
    products = seconds_in_products(step)
    asked.send(READY)
    while asked.recv() == STEP:
        asked.send(timed(step))
    asked.send({"peak_bytes": peak, "flops": tally.flops, "products": products, **facts})


def seconds_in_products(step: Callable[[], None]) -> float:
    """Of one step, as torch's profiler sees it: what would be left if everything but matrix
    products took no time.
    """
    with profile(
        activities=[ProfilerActivity.CPU] if on_cpu() else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    ) as profiled:
        timed(step)
    spent = [event for event in profiled.key_averages() if event.key in PRODUCTS]
    return sum(event.self_cpu_time_total if on_cpu() else event.self_device_time_total for event in spent) / 1e6


def timed(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    if not on_cpu():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def make_step(arguments: argparse.Namespace, name: str, device: str) -> tuple[Callable[[], None], dict[str, Any]]:
    """A method's training step (forward, backward, AdamW) and what it holds."""
    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    with torch.device(device):
        base: Any = AutoModelForCausalLM.from_config(
            SHAPES[arguments.shape], dtype=dtype, attn_implementation=arguments.attention
        )
    model, guard = prepare(base, name, arguments.quota)
    model.train()
    if arguments.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.1)
    guard(optimizer)
    ids = torch.randint(0, base.config.vocab_size, (arguments.batch, arguments.tokens), device=device)

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    count = sum(parameter.numel() for parameter in trained)
    size = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    return step, {"trainable": count, "optimizer_bytes": 2 * size, "reduced_bytes_per_step": size}


def prepare(model: PreTrainedModel, name: str, quota: float) -> tuple[Any, Callable[[Any], None]]:
    """The model as the method trains it, and what the method does to the optimizer."""
    layers = decoder_layers(model)
    weight = site_of(layers[0]).downs[0].weight
    where, share = ("gate_up", quota / 2) if name == NEURONS else ("down", quota)
    positions = select_random(blocks_of(row_blocks(model, where)), share, seed=0)
    dtype, device = weight.dtype, weight.device
    if name == "full":
        return model, lambda _: None
    if name.startswith("LoRA"):
        targets: dict[str, Any] = {"target_modules": "all-linear"}
        if "experts" in name:
            targets = {"target_modules": [], "target_parameters": ["experts.down_proj"]}
        config = LoraConfig(r=16, lora_alpha=16, task_type="CAUSAL_LM", **targets)
        return get_peft_model(model, config, autocast_adapter_dtype=False), lambda _: None
    if name == "mask":
        frozen = train_only_rows(model, positions)
        return model, lambda optimizer: keep_through_steps(optimizer, frozen)
    if name.startswith("authors"):
        model.requires_grad_(False)
        for layer, rows in zip(layers, positions.rows, strict=True):
            holder, name = site_of(layer).downs[0].holder
            setattr(holder, name, AuthorsLinear(getattr(holder, name), rows))
        return model, lambda _: None
    low_rank = LowRankSection(rank=16, alpha=16.0) if name.startswith("lora") else None
    train_row_deltas(model, positions, dtype, device, low_rank, seed=0)
    return model, lambda _: None


class AuthorsLinear(nn.Linear):
    """The LoKI Linear of the authors' code as the paper describes it: two products, a concatenation
    and a gather in every forward.
    """

    order: Tensor

    def __init__(self, base: nn.Linear, rows: list[int]) -> None:
        nn.Module.__init__(self)
        others = sorted(set(range(base.out_features)) - set(rows))
        self.active = nn.Parameter(base.weight[rows].detach().clone())
        self.fixed = nn.Parameter(base.weight[others].detach().clone(), requires_grad=False)
        order = torch.tensor(rows + others, device=base.weight.device).argsort()
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        both = [nn.functional.linear(x, weight) for weight in (self.active, self.fixed)]
        return torch.cat(both, dim=-1)[..., self.order]


def write_report(arguments: argparse.Namespace, measured: dict[str, dict[str, Any]]) -> None:
    made_with, tokens = where("torch", "transformers", "peft"), arguments.batch * arguments.tokens
    said = {
        "experts": "moe" in arguments.shape,
        "checkpointing": arguments.checkpointing,
        str(arguments.attention): arguments.attention is not None,
        arguments.shape: not on_cpu(),
        "bfloat16": on_cpu() and arguments.dtype == "bfloat16",
    }
    how = "AdamW, activation checkpointing" if arguments.checkpointing else "AdamW"
    about = (
        f"`{command()}`: {arguments.shape}, {arguments.dtype}, quota {arguments.quota:g}, {arguments.batch} x "
        f"{arguments.tokens} tokens, {how}, median of {arguments.rounds} rounds, each method in a process of its own; "
        f"{listed(made_with)}. Of a step, `products` are its matrix products (attention's apart). Bytes reduced are "
        "those of the trainable gradients, which data parallelism sums each step."
    )
    name = "_".join(["training_step", *(word for word, holds in said.items() if holds)])
    shown = table(HEADINGS, [row(name, m, measured, tokens) for name, m in measured.items()])
    keep(name, {"settings": vars(arguments), "where": made_with, "methods": measured})
    write(name, "One training step", paragraph(about), shown)
    print(shown)


def row(name: str, found: dict[str, Any], measured: dict[str, dict[str, Any]], tokens: int) -> list[str]:
    """One method's line under `HEADINGS`."""
    gpu, seconds, rate = this_machines(), found["seconds"], found["flops"] / found["seconds"] / 1e12
    of = [
        next((m["seconds"] for name, m in measured.items() if name.startswith(key)), None) for key in ("LoRA", "full")
    ]
    return [
        name,
        *(f"{1000 * time:.0f}" for time in (seconds, found["products"])),
        f"{tokens / seconds:.0f}",
        *(f"{other / seconds:.2f}" if other else "-" for other in of),
        f"{rate:.3g}",
        f"{rate / gpu.tflops:.0%}" if gpu else "-",
        f"{found['trainable'] / 1e6:.2f} M",
        *(f"{found[key] / 2**20:.1f} MiB" for key in ("optimizer_bytes", "reduced_bytes_per_step", "peak_bytes")),
    ]


if __name__ == "__main__":
    main()
