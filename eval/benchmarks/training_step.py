"""One training step side by side, in one run: full, LoRA, the authors' LoKI Linear, and our `mask`, `rows` (also quiet) and `lora`.

    python eval/benchmarks/training_step.py                                          # 8 layers, d_model 512, on the CPU
    python eval/benchmarks/training_step.py --shape llama-3.1-8b --dtype bfloat16    # on a GPU

Every method starts from the same random model and sees the same tokens; the methods take turns, round by round, so a slow moment of
the machine hits all of them. Writes eval/reports/training_step.json and .md.
"""

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from shapes import SHAPES
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from loki_ds.attribution.anatomy import decoder_layers, down_projection, down_weights
from loki_ds.device import on_cpu, peak_memory
from loki_ds.implanting.mask import train_only_rows
from loki_ds.implanting.rows import train_row_deltas
from loki_ds.planning.dry_run import Tally
from loki_ds.planning.hardware import this_machines
from loki_ds.recipe import LowRankSection
from loki_ds.selection import select_random
from loki_ds.zero import keep_through_steps

REPORTS = Path(__file__).parents[1] / "reports"
METHODS = ("full", "LoRA r16, all linears", "authors' LoKI Linear", "mask", "rows", "rows, quiet", "lora (LoKI*)")
HEADINGS = [
    *("method", "step, ms", "tokens/s", "of LoRA's", "of full's", "TFLOP/s", "of the peak"),
    *("trainable", "optimizer", "reduced a step", "peak above the model"),
]
PROTECTED = 4  # a quiet implant keeps out of one input direction in so many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8 layers, d_model 512")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--quota", type=float, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--checkpointing", action="store_true", help="compute activations twice, as recipes for large models do")
    parser.add_argument("--peak-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = "cpu" if on_cpu() else "cuda"
    if arguments.peak_only:
        step, _ = make_step(arguments, arguments.methods[0], device)
        print(peak_memory(step))
        return
    if on_cpu():
        write(arguments, in_turns(arguments, device))
        return
    write(arguments, {name: one_after_another(arguments, name, device) for name in arguments.methods})  # one such model at a time


def in_turns(arguments: argparse.Namespace, device: str) -> dict[str, dict[str, Any]]:
    """Median seconds of each method, all methods alive, a step of each in every round."""
    peaks = {name: peak_in_own_process(arguments, name) for name in arguments.methods}
    steps = {name: make_step(arguments, name, device) for name in arguments.methods}
    flops = {name: flops_of(step) for name, (step, _) in steps.items()}  # first-time costs of the libraries belong to nobody
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        for name, (step, _) in steps.items():
            seconds[name].append(timed(step))
    return {
        name: {"seconds": statistics.median(seconds[name]), "peak_bytes": peaks[name], "flops": flops[name], **facts}
        for name, (_, facts) in steps.items()
    }


def flops_of(step: Callable[[], None]) -> int:
    """Of one step, counted by torch from the shapes."""
    with Tally([]) as tally:
        step()
    return tally.flops


def peak_in_own_process(arguments: argparse.Namespace, name: str) -> int:
    """Peak bytes of one method's first step above the model: a process of its own, or freed memory of other methods would hide it."""
    command = [sys.executable, __file__, "--peak-only", "--methods", name]
    command += [part for key in ("shape", "dtype", "quota", "batch", "tokens") for part in (f"--{key}", str(getattr(arguments, key)))]
    command += ["--checkpointing"] if arguments.checkpointing else []
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def one_after_another(arguments: argparse.Namespace, name: str, device: str) -> dict[str, Any]:
    step, facts = make_step(arguments, name, device)
    flops = flops_of(step)
    torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(timed(step) for _ in range(arguments.rounds))
    peak = torch.cuda.max_memory_allocated()
    del step
    gc.collect()
    torch.cuda.empty_cache()
    return {"seconds": seconds, "peak_bytes": peak, "flops": flops, **facts}


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
        base = AutoModelForCausalLM.from_config(SHAPES[arguments.shape], dtype=dtype)
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


def prepare(model: PreTrainedModel, name: str, quota: float) -> tuple[nn.Module, Callable[[Any], None]]:
    """The model as the method trains it, and what the method does to the optimizer."""
    layers = decoder_layers(model)
    d_model = down_weights(model)[0].shape[0]
    positions = select_random(len(layers), d_model, quota, seed=0)
    dtype, device = down_weights(model)[0].dtype, down_weights(model)[0].device
    if name == "full":
        return model, lambda _: None
    if name.startswith("LoRA"):
        return get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")), lambda _: None
    if name == "mask":
        frozen = train_only_rows(model, positions)
        return model, lambda optimizer: keep_through_steps(optimizer, frozen)
    if name.startswith("authors"):
        model.requires_grad_(False)
        for layer, rows in zip(layers, positions.rows, strict=True):
            layer.mlp.down_proj = AuthorsLinear(down_projection(layer), rows)
        return model, lambda _: None
    low_rank = LowRankSection(rank=16, alpha=16.0) if name.startswith("lora") else None
    bases = None
    if name.endswith("quiet"):
        d_ff = down_weights(model)[0].shape[1]
        bases = [torch.linalg.qr(torch.randn(d_ff, d_ff // PROTECTED, device=device))[0] for _ in layers]
    train_row_deltas(model, positions, dtype, device, low_rank, seed=0, quiet=bases)
    return model, lambda _: None


class AuthorsLinear(nn.Module):
    """The LoKI Linear of the authors' code as the paper describes it: two products, a concatenation and a gather in every forward."""

    def __init__(self, base: nn.Linear, rows: list[int]) -> None:
        super().__init__()
        others = sorted(set(range(base.out_features)) - set(rows))
        self.active = nn.Parameter(base.weight[rows].detach().clone())
        self.fixed = nn.Parameter(base.weight[others].detach().clone(), requires_grad=False)
        order = torch.tensor(rows + others, device=base.weight.device).argsort()
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([nn.functional.linear(x, self.active), nn.functional.linear(x, self.fixed)], dim=-1)[..., self.order]


def write(arguments: argparse.Namespace, measured: dict[str, dict[str, Any]]) -> None:
    device = f"{platform.machine()}, {torch.get_num_threads()} threads" if on_cpu() else torch.cuda.get_device_name()
    where = {"device": device, **{name: version(name) for name in ("torch", "transformers", "peft")}}
    name = "training_step" + ("_checkpointing" if arguments.checkpointing else "") + ("" if on_cpu() else f"_{arguments.shape}")
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / f"{name}.json").write_text(json.dumps({"settings": vars(arguments), "where": where, "methods": measured}, indent=1) + "\n")
    (REPORTS / f"{name}.md").write_text(as_markdown(arguments, where, measured))
    print(as_markdown(arguments, where, measured))


def as_markdown(arguments: argparse.Namespace, where: dict[str, str], measured: dict[str, dict[str, Any]]) -> str:
    tokens = arguments.batch * arguments.tokens
    how = "AdamW, activation checkpointing" if arguments.checkpointing else "AdamW"
    lines = [
        "# One training step",
        "",
        f"`python eval/benchmarks/training_step.py`: {arguments.shape}, {arguments.dtype}, quota {arguments.quota:g}, {arguments.batch} x "
        f"{arguments.tokens} tokens, {how}, median of {arguments.rounds} rounds in which the methods take turns; "
        + ", ".join(f"{key} {value}" for key, value in where.items())
        + ". Bytes reduced are those of the trainable gradients, which data parallelism sums each step.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "| --- |" + " ---: |" * (len(HEADINGS) - 1),
    ]
    gpu = this_machines()
    of = {key: next((m["seconds"] for name, m in measured.items() if name.startswith(key)), None) for key in ("LoRA", "full")}
    for name, m in measured.items():
        ratios = [f"{of[key] / m['seconds']:.2f}" if of[key] else "-" for key in ("LoRA", "full")]
        sizes = [f"{m[key] / 2**20:.1f} MiB" for key in ("optimizer_bytes", "reduced_bytes_per_step", "peak_bytes")]
        speed = [f"{1000 * m['seconds']:.0f}", f"{tokens / m['seconds']:.0f}"]
        rate = m["flops"] / m["seconds"] / 1e12
        reached = [f"{rate:.3g}", f"{rate / gpu.tflops:.0%}" if gpu else "-"]
        lines.append("| " + " | ".join([name, *speed, *ratios, *reached, f"{m['trainable'] / 1e6:.2f} M", *sizes]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
