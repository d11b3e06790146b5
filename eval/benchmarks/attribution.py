"""Attribution side by side, in one run: the sweep, the definition, and Captum's
LayerIntegratedGradients (the authors' way).

    # a random model of Qwen2.5-0.5B's size, on the CPU
    python eval/benchmarks/attribution.py
    # on a GPU: a whole pass of MMLU's size
    python eval/benchmarks/attribution.py --pass --shape llama-3.1-8b --dtype bfloat16

Needs the extra `bench`. Writes eval/reports/attribution.json, .md and .png (--pass:
attribution_pass.json). The definition and Captum cost the same for every layer up to the length of
the way back, so they are timed on evenly spaced layers (--reference-layers) and scaled to all;
every figure says on how many it rests.
"""

import argparse
import copy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from shapes import SHAPES
from transformers import AutoModelForCausalLM, PreTrainedModel

from loki_ds.attribution.batches import affordable_batch, batches, sweep_batches
from loki_ds.attribution.definition import attribute_layer
from loki_ds.attribution.rules import quadrature
from loki_ds.attribution.sweep import Sweep
from loki_ds.distributed.device import available_memory, on_cpu, peak_memory
from loki_ds.model.anatomy import decoder_layers
from loki_ds.model.ffn import site_of
from loki_ds.planning.hardware import this_machines

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import REPORTS, command, keep, listed, paragraph, table, where, write

STEPS = 7
KINDS = ("moe-16-layers", "hybrid-16-layers")
TOGETHER = 4  # prompts that the sweep takes together, as a pass over a protected set does
SUBJECTS, PER_SUBJECT, SHOTS_TOKENS, QUESTION_TOKENS = 57, 50, 500, 100  # the paper's protected set, five-shot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument(
        "--reference-layers", type=int, default=4, help="layers on which the definition and Captum are timed"
    )
    parser.add_argument(
        "--pass", dest="whole_pass", action="store_true", help="time a whole MMLU-sized pass of the sweep instead"
    )
    parser.add_argument("--kinds", action="store_true", help="experts and linear attention instead, at 512 tokens")
    parser.add_argument("--subjects", type=int, default=SUBJECTS)
    parser.add_argument("--peak-only", type=int, nargs=2, metavar=("LENGTH", "PROMPTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kinds:
        write_kinds({name: compare_kind(build(SHAPES[name], torch.float32)) for name in KINDS})
        return
    model = build(SHAPES[arguments.shape], getattr(torch, arguments.dtype))
    if arguments.peak_only:
        print(sweep_peak(model, *arguments.peak_only))
        return
    if arguments.whole_pass:
        keep("attribution_pass", {**setting(arguments), **time_whole_pass(model, arguments.subjects)})
        return
    found = {**setting(arguments), "compared": [compare(arguments, model, length) for length in arguments.lengths]}
    settings = ((128, 1.0, 7), (128, 0.5, 7), (128, 1.0, 14), (512, 1.0, 7))
    found["cost"] = [cost_of_sweep(arguments, *one) for one in settings]
    name = "attribution" if on_cpu() else f"attribution_{arguments.shape}"
    keep(name, found)
    write_report(name, found)
    draw(name, found)


def build(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    with torch.device("cpu" if on_cpu() else "cuda"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)


def setting(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is measured, and on what."""
    made_with = where("torch", "transformers", "captum")
    return {
        "shape": arguments.shape,
        "dtype": arguments.dtype,
        "device": made_with.pop("device"),
        "versions": made_with,
    }


# --- experts and linear attention -----------------------------------------------------------------


def compare_kind(model: PreTrainedModel, tokens: int = 512, reference_layers: int = 2) -> dict[str, Any]:
    """Seconds for a prompt by the sweep and by the definition, and how far they are apart."""
    generator = torch.Generator().manual_seed(tokens)
    prompts = torch.randint(0, model.config.vocab_size, (TOGETHER, tokens), generator=generator).tolist()
    sweep, layers, ids = (
        Sweep(model, steps=STEPS),
        decoder_layers(model),
        torch.tensor(prompts[:1], device=model.device),
    )
    sweep.run([prompts[0][:16]])  # first-time costs of the libraries belong to nobody
    scores, seconds, _ = timed(lambda: sweep.run(prompts).scores)
    chosen = [round(i * (len(layers) - 1) / (reference_layers - 1)) for i in range(reference_layers)]
    points = quadrature("right", STEPS)
    expected, definition, _ = timed(
        lambda: on_layers(lambda i: attribute_layer(model, ids, layers[i], points, "probability", True), chosen)
    )
    found = {"sweep": seconds / TOGETHER, "definition": definition * len(layers) / len(chosen), "layers": len(layers)}
    apart = (expected - scores[0, chosen]).abs().max() / expected.abs().max()
    return {**found, "ratio": found["definition"] / found["sweep"], "largest_difference": apart.item()}


def write_kinds(found: dict[str, dict[str, Any]]) -> None:
    made_with = where("torch", "transformers")
    keep("attribution_kinds", {"where": made_with, "shapes": found})
    rows = [
        (
            name,
            f"{one['sweep']:.2f}",
            f"{one['definition']:.0f}",
            f"{one['ratio']:.0f}",
            f"{one['largest_difference']:.0e}",
        )
        for name, one in found.items()
    ]
    about = f"""`{command()}`: seconds for a prompt of 512 tokens in float32, {TOGETHER} together in the sweep, the
        definition timed on 2 layers; {listed(made_with)}. Both ways route in float32, so a near tie may send a token
        to another expert in one of them."""
    headings = ("shape", "sweep", "definition", "times", "largest difference")
    write("attribution_kinds", "Attribution of experts and linear attention", paragraph(about), table(headings, rows))


# --- the three ways on one prompt -----------------------------------------------------------------


def compare(arguments: argparse.Namespace, model: PreTrainedModel, length: int) -> dict[str, Any]:
    """Seconds for each prompt and peak bytes of each way, and how far their scores are apart."""
    generator = torch.Generator().manual_seed(length)
    prompt = torch.randint(0, model.config.vocab_size, (length,), generator=generator).tolist()
    ids = torch.tensor([prompt], device=model.device)
    layers = decoder_layers(model)
    reference_layers = arguments.reference_layers
    chosen = [round(i * (len(layers) - 1) / (reference_layers - 1)) for i in range(reference_layers)]
    sweep = Sweep(model, steps=STEPS)
    sweep.run([prompt])  # first-time costs of the libraries belong to nobody
    scores, alone, _ = timed(lambda: sweep.run([prompt]).scores[0])
    others = torch.randint(0, model.config.vocab_size, (TOGETHER - 1, length), generator=generator).tolist()
    _, together, _ = timed(lambda: sweep.run([prompt, *others]).scores)
    result: dict[str, Any] = {
        "tokens": length,
        "sweep alone": {"seconds": alone, "peak_bytes": peak_in_own_process(arguments, length, 1)},
        "sweep": {"seconds": together / TOGETHER, "peak_bytes": peak_in_own_process(arguments, length, TOGETHER)},
    }
    one_layer: dict[str, Callable[[int], torch.Tensor]] = {
        "definition": lambda i: attribute_layer(model, ids, layers[i], quadrature("right", STEPS), "probability", True),
        "captum": lambda i: by_captum(model, ids, layers[i]),
    }
    for name, way in one_layer.items():
        found, seconds, memory = timed(partial(on_layers, way, chosen))
        total = seconds * len(layers) / len(chosen)
        result[name] = {"seconds": total, "peak_bytes": memory, "timed_layers": len(chosen), "layers": len(layers)}
        result[name]["ratio"] = total / result["sweep"]["seconds"]
        if name == "definition":
            result[name]["largest_difference"] = ((found - scores[chosen]).abs().max() / found.abs().max()).item()
        print(
            f"T={length} {name}: {result[name]['ratio']:.0f} times the sweep's {result['sweep']['seconds']:.2f} s",
            flush=True,
        )
    return result


def sweep_peak(model: PreTrainedModel, length: int, prompts: int) -> int:
    sweep = Sweep(model, steps=STEPS)
    return peak_memory(lambda: sweep.run([[7] * length] * prompts))


def peak_in_own_process(arguments: argparse.Namespace, length: int, prompts: int) -> int:
    """Peak bytes of a sweep above the model, where nothing else has been: what a process once had
    it may use again unseen.
    """
    command = [
        sys.executable,
        __file__,
        "--shape",
        arguments.shape,
        "--dtype",
        arguments.dtype,
        "--peak-only",
        str(length),
        str(prompts),
    ]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def by_captum(model: PreTrainedModel, ids: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    """One layer through Captum: its Riemann sum over the whole `down_proj` output, baseline the
    all-zero prompt.
    """
    from captum.attr import LayerIntegratedGradients

    def probability(tokens: torch.Tensor) -> torch.Tensor:
        return model(input_ids=tokens).logits[:, -1].float().softmax(-1)

    with torch.no_grad():
        token = int(probability(ids)[0].argmax())
    method = LayerIntegratedGradients(probability, site_of(layer).downs[0].module)
    weight = site_of(layer).downs[0].weight.requires_grad_()  # Captum needs a graph to differentiate
    try:
        found = method.attribute(
            ids, baselines=torch.zeros_like(ids), target=token, n_steps=STEPS, method="riemann_right"
        )
    finally:
        weight.requires_grad_(False)
    return found[0, -1].detach()


def timed(compute: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float, int]:
    """Result, seconds, and peak bytes above what was held before."""
    kept: list[Any] = []

    def work() -> None:
        started = time.perf_counter()
        kept.append(compute())
        kept.append(time.perf_counter() - started)

    memory = peak_memory(work)
    return kept[0], kept[1], memory


def cost_of_sweep(arguments: argparse.Namespace, tokens: int, depth: float, steps: int) -> dict[str, Any]:
    """The sweep alone on a model of `depth` times the layers."""
    config = copy.deepcopy(SHAPES[arguments.shape])
    config.num_hidden_layers = int(depth * config.num_hidden_layers)
    config.layer_types = None if not hasattr(config, "layer_types") else config.layer_types[: config.num_hidden_layers]
    model = build(config, getattr(torch, arguments.dtype))
    sweep, prompt = Sweep(model, steps=steps), [[7] * tokens]
    sweep.run(prompt)
    _, seconds, _ = timed(lambda: sweep.run(prompt).scores)
    flops = sweep_flops(model, 1, tokens, 0, steps)
    return {"tokens": tokens, "layers": config.num_hidden_layers, "steps": steps, "seconds": seconds, "flops": flops}


# --- a whole pass ---------------------------------------------------------------------------------


def time_whole_pass(model: PreTrainedModel, subjects: int) -> dict[str, Any]:
    """Seconds for `subjects` x 50 prompts, each subject with its own few-shot beginning, and the
    share of the device's peak.
    """
    generator = torch.Generator().manual_seed(0)

    def draw_tokens(count: int) -> list[int]:
        return torch.randint(0, model.config.vocab_size, (count,), generator=generator).tolist()

    prompts = [
        [*shots, *draw_tokens(QUESTION_TOKENS)]
        for shots in (draw_tokens(SHOTS_TOKENS) for _ in range(subjects))
        for _ in range(PER_SUBJECT)
    ]
    sweep = Sweep(model, steps=STEPS)
    size = affordable_batch(sweep.run, prompts, int(0.8 * available_memory()))
    planned = batches(prompts, size)
    synchronize()
    started = time.perf_counter()
    for _ in sweep_batches(sweep, prompts, planned, split_over_ranks=False):
        pass
    synchronize()
    seconds = time.perf_counter() - started
    flops = sum(
        sweep_flops(model, len(batch), SHOTS_TOKENS + QUESTION_TOKENS, SHOTS_TOKENS, STEPS) for batch in planned
    )
    gpu = this_machines()
    return {
        "prompts": len(prompts),
        "batch": size,
        "seconds": seconds,
        "flops": flops,
        "flops_per_second": flops / seconds,
        "share_of_peak": gpu and flops / seconds / (gpu.tflops * 1e12),
    }


def synchronize() -> None:
    if not on_cpu():
        torch.cuda.synchronize()


def sweep_flops(model: PreTrainedModel, prompts: int, tokens: int, shared: int, steps: int) -> float:
    """Multiply-adds counted twice, matrix products of layers only (attention scores and the head
    are left out).

    Up: every token once (shared ones once for the batch), and at layer l the true row, m + 1 fresh
    ones and m + 1 of each layer below. Down: at layer l, m rows of each layer up to it, forward (2)
    and back to the inputs (2).
    """
    layers = decoder_layers(model)
    per_token = 2 * sum(parameter.numel() for parameter in layers[0].parameters() if parameter.dim() == 2)
    count = len(layers)
    triangle = count * (count + 1) / 2
    up = (prompts * (tokens - shared) + shared) * count + prompts * ((steps + 1) * triangle + count)
    return per_token * (up + 2 * prompts * steps * triangle)


# --- what it leaves -------------------------------------------------------------------------------


def write_report(name: str, found: dict[str, Any]) -> None:
    about = (
        f"`python eval/benchmarks/attribution.py`: random weights, {found['shape']} shape, {found['dtype']}, {STEPS} "
        f"steps; {found['device']}; {listed(found['versions'])}. Definition and Captum are timed on evenly spaced "
        "layers and scaled to all of them."
    )
    differences = ", ".join(
        f"{row['definition']['largest_difference']:.1e} at {row['tokens']} tokens" for row in found["compared"]
    )
    cost = [
        (row["tokens"], row["layers"], row["steps"], f"{row['seconds']:.2f}", f"{row['flops'] / 1e9:.0f}")
        for row in found["cost"]
    ]
    flops = counted_pass()
    counted = (
        f"Not measured here, counted: the paper's pass ({SUBJECTS} subjects x {PER_SUBJECT} prompts, {SHOTS_TOKENS} "
        f"shared + {QUESTION_TOKENS} own tokens) on Llama-3.1-8B is {flops / 1e15:.0f} PFLOP, that is "
        f"{flops / 989e12 / 0.4:.0f} s at 40% of an H100's 989 TFLOP/s (bf16). `--pass --shape llama-3.1-8b --dtype "
        "bfloat16` measures it."
    )
    headings = ["way", "tokens", "seconds a prompt", "times the sweep", "peak memory above the model", "layers timed"]
    write(
        name,
        "Attribution: the sweep against the definition and Captum",
        paragraph(about),
        table(headings, [line for row in found["compared"] for line in ways(row)]),
        f"Largest difference of a score from the definition, of the largest score: {differences}.",
        "What the sweep's cost depends on:",
        table(["tokens", "layers", "steps", "seconds", "GFLOP"], cost, words=0),
        paragraph(counted),
        f"![seconds for one prompt]({name}.png)",
    )


def ways(row: dict[str, Any]) -> Iterator[list[object]]:
    """The lines of one length of prompt."""
    for name, label in (("sweep", f"sweep, {TOGETHER} prompts together"), ("sweep alone", "sweep, one prompt")):
        way, ratio = row[name], row[name]["seconds"] / row["sweep"]["seconds"]
        yield [label, row["tokens"], f"{way['seconds']:.2f}", f"{ratio:.2f}", mebibytes(way), "all"]
    for name in ("definition", "captum"):
        way = row[name]
        timed = f"{way['timed_layers']} of {way['layers']}"
        yield [name, row["tokens"], f"{way['seconds']:.0f}", f"{way['ratio']:.0f}", mebibytes(way), timed]


def on_layers(way: Callable[[int], torch.Tensor], chosen: list[int]) -> torch.Tensor:
    return torch.stack([way(i).cpu() for i in chosen])


def mebibytes(way: dict[str, Any]) -> str:
    return f"{way['peak_bytes'] / 2**20:.0f} MiB"


def counted_pass() -> float:
    """FLOPs of the paper's whole pass on Llama-3.1-8B, a subject a batch."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPES["llama-3.1-8b"])
    return SUBJECTS * sweep_flops(model, PER_SUBJECT, SHOTS_TOKENS + QUESTION_TOKENS, SHOTS_TOKENS, STEPS)


def draw(name: str, found: dict[str, Any]) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    tokens = [row["tokens"] for row in found["compared"]]
    for way in ("captum", "definition", "sweep"):
        axes.plot(tokens, [row[way]["seconds"] for row in found["compared"]], marker="o", label=way)
    axes.set(
        xlabel="tokens in the prompt",
        ylabel="seconds for one prompt",
        yscale="log",
        xticks=tokens,
        title=f"{found['shape']}, {found['device']}",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(REPORTS / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
