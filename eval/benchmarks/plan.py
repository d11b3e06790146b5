"""What `loki-ds plan` says of memory and traffic, next to what is measured on this machine's GPUs,
or on CPU ranks: every mode, ZeRO stage and number of ranks (on GPUs as many as there are).

    python eval/benchmarks/plan.py              # half an hour on two cores; eval/reports/plan.*
    python eval/benchmarks/plan.py --only rows  # the cases whose name has that word

Memory is what a rank's device holds at its peak while it trains, by its allocator's count; on CPU
ranks the size of the process, above its size before it loaded the model. Traffic is every
collective that torch's process groups see in the third step (ZeRO-3 knows its order of work from
the second on). Two random models: Llama's kind, 135 million parameters in float32, and Qwen2's
kind, 163 million in bfloat16, with tied embeddings, biases, fewer keys than queries and a
vocabulary that outweighs its layers; two sequences of 512 tokens a rank.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from shapes import QWEN2_05B, blocks_in
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    TrainerCallback,
)
from transformers.trainer import DEFAULT_CALLBACKS

from loki_ds.attribution.sweep import Sweep
from loki_ds.distributed import ranks
from loki_ds.distributed.device import ProcessSize, free_memory, local_devices, on_cpu
from loki_ds.distributed.launcher import free_port
from loki_ds.distributed.zero.gathering import Gatherer
from loki_ds.implanting.training import Examples, Method, Resume, train
from loki_ds.implanting.trl_config import TrainingShape, deepspeed_config
from loki_ds.planning.estimate import dry_step, dry_sweep, estimate
from loki_ds.planning.partitioning import Setting, kept_bytes, sweep_memory, sweep_traffic
from loki_ds.recipe.file import load_recipe
from loki_ds.selection.select import planned_positions, select_random
from loki_ds.stages.check import check
from loki_ds.stages.run import Run

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import ROOT, keep, listed, paragraph, table, write

MODELS = {
    "llama": LlamaConfig(
        vocab_size=16384,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=512,
    ),
    "qwen2": Qwen2Config(**{**QWEN2_05B, "vocab_size": 65536, "num_hidden_layers": 7, "max_position_embeddings": 512}),
}
DTYPES = {"llama": "float32", "qwen2": "bfloat16"}
BATCH, TOKENS = 2, 512
PROMPTS = 4  # of the attribution, 256 tokens each


def cases() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for mode in ("rows", "mask", "lora", "full", "peft"):
        for stage in (2, 3):
            found[f"{mode}, ZeRO-{stage}, 2 ranks"] = {"mode": mode, "config": f"launch/zero{stage}.json", "ranks": 2}
    for count in (1, 3, 4):
        for mode in ("rows", "full"):
            found[f"{mode}, ZeRO-3, {count} ranks"] = {"mode": mode, "config": "launch/zero3.json", "ranks": count}
    found["rows, ZeRO-3, 2 ranks, checkpointing"] = {
        "mode": "rows",
        "config": "launch/zero3.json",
        "ranks": 2,
        "checkpointing": True,
    }
    found["rows, ZeRO-3, 2 ranks, 2 micro-steps"] = {
        "mode": "rows",
        "config": "launch/zero3.json",
        "ranks": 2,
        "accumulation": 2,
    }
    found["mask, ZeRO-2, 2 ranks, 2 micro-steps"] = {
        "mode": "mask",
        "config": "launch/zero2.json",
        "ranks": 2,
        "accumulation": 2,
    }
    found["rows, ZeRO-3, 2 ranks, reused within 50 million"] = {
        "mode": "rows",
        "config": "less_reused.json",
        "ranks": 2,
    }
    for count in (1, 2, 3, 4):
        found[f"attribution, ZeRO-3, {count} ranks"] = {
            "mode": "attribution",
            "config": "launch/zero3.json",
            "ranks": count,
        }
    found = {name: {"model": "llama", **case} for name, case in found.items()}
    again = [
        name
        for name, case in found.items()
        if case["ranks"] == 2 and case["mode"] != "lora" and case["config"].startswith("launch/")
    ]
    return found | {f"qwen2, {name}": {**found[name], "model": "qwen2"} for name in again}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--case", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        measure(cases()[arguments.case[0]], Path(arguments.case[1]))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_world(Path(folder))
        for name, case in cases().items():
            if arguments.only in name and (on_cpu() or case["ranks"] <= local_devices()):
                rows.append({"case": name, **launched(name, case, Path(folder))})
                print(json.dumps(rows[-1]), flush=True)
    if not arguments.only:
        keep("plan", {"versions": versions(), "cases": rows})
        write_report(rows, versions())


# --- what is trained ------------------------------------------------------------------------------


def make_world(folder: Path) -> None:
    """Random models with the tiny world's tokenizer, texts that fill every sequence, and a
    recipe.
    """
    torch.manual_seed(0)
    for name, config in MODELS.items():
        AutoModelForCausalLM.from_config(config, dtype=getattr(torch, DTYPES[name])).save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model").save_pretrained(folder / name)
    word = "copy a b c d e f g h "
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": word * TOKENS}) + "\n" for _ in range(64)))
    less_reused = json.loads((ROOT / "launch/zero3.json").read_text())
    less_reused["zero_optimization"]["stage3_max_reuse_distance"] = 50_000_000
    (folder / "less_reused.json").write_text(json.dumps(less_reused))
    training = {
        "max_steps": 3,
        "per_device_train_batch_size": BATCH,
        "max_length": TOKENS,
        "activation_checkpointing": False,
    }
    recipe = {
        "model": {"path": "put in by each case"},
        "selection": {"strategy": "random", "quota": 10},
        "implant": {"peft": {"rank": 16}, "lora": {"rank": 16}},
        "data": {"train": str(folder / "texts.jsonl")},
        "training": {**training, "optim": "adamw_torch_fused", "weight_decay": 0.1, "logging_steps": 1},
        "retention": {"abilities": {"tasks": ["tiny_facts"]}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def recipe_of(case: dict[str, Any], folder: Path) -> Any:
    config = ROOT / case["config"] if case["config"].startswith("launch/") else folder / case["config"]
    overrides = [
        f"model.path={folder / case['model']}",
        f"model.dtype={DTYPES[case['model']]}",
        f"deepspeed={config}",
        f"run={folder / 'run'}",
    ]
    if case["mode"] != "attribution":
        overrides.append(f"implant.mode={case['mode']}")
    if case["mode"] in ("rows", "lora"):
        overrides.append("training.weight_decay=0")  # a delta would decay to the base
    if case.get("checkpointing"):
        overrides.append("training.activation_checkpointing=true")
    if case.get("accumulation"):
        overrides.append(f"training.gradient_accumulation_steps={case['accumulation']}")
    return load_recipe(folder / "recipe.yaml", overrides)


def launched(name: str, case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One case on its ranks, and what the plan says of it."""
    # A fixed threshold makes glibc give every large tensor's memory back at once, so that the
    # process's size is what it holds.
    on_processors = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    environment = {**os.environ, **(on_processors if on_cpu() else {}), "HF_HUB_OFFLINE": "1"}
    command = [
        str(Path(sys.executable).parent / "deepspeed"),
        "--num_gpus",
        str(case["ranks"]),
        "--master_port",
        str(free_port()),
    ]
    shutil.rmtree(folder / "run", ignore_errors=True)
    done = subprocess.run(
        [*command, __file__, "--case", name, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
    return {"measured": json.loads((folder / "measured.json").read_text()), "planned": planned(case, folder)}


def planned(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    recipe, config = recipe_of(case, folder), AutoConfig.from_pretrained(folder / case["model"])
    shape, mode = TrainingShape.of(recipe.training, recipe.model.dtype), recipe.implant.kind
    if case["mode"] == "attribution":
        setting, batch = (
            Setting(case["ranks"], stage=3),
            dry_sweep(config, recipe.model, recipe.attribution, PROMPTS, 256),
        )
        width = shape.bytes_per_number
        return {"peak": sweep_memory(batch, setting, width), **vars(sweep_traffic(batch, setting, width))}
    positions = planned_positions(recipe.selection, blocks_in(config)) if recipe.changes_rows else None
    kept = kept_bytes(mode.masks, pulled=False)
    step = dry_step(config, recipe.model, Method(recipe.implant, positions), shape)
    setting = Setting.of(deepspeed_config(recipe.deepspeed, recipe.implant), case["ranks"], config.hidden_size)
    found = estimate(step, setting, shape, mode, kept)
    return {"peak": found.memory.peak, **vars(found.memory), **vars(found.traffic), "flops": found.flops}


# --- what is measured -----------------------------------------------------------------------------


class Collectives(TorchDispatchMode):
    """Counts the bytes of the whole tensors in every collective of torch's process groups."""

    KINDS = (
        ("allgather", "gathered"),
        ("reduce_scatter", "scattered"),
        ("allreduce", "reduced"),
        ("broadcast", "broadcast"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), settings: Any = None) -> Any:
        name = operation._schema.name
        if name.startswith("c10d::"):
            kind = next((kind for word, kind in self.KINDS if word in name), name)
            whole = arguments[1] if kind == "scattered" else arguments[0]  # inputs are whole there, outputs elsewhere
            self.bytes[kind] += sum(tensor.nbytes for tensor in tree_leaves(whole) if isinstance(tensor, torch.Tensor))
        return operation(*arguments, **(settings or {}))


class DeviceSize:
    """What this rank's device holds at its peak while it is watched, in bytes (`peak`)."""

    def __enter__(self) -> "DeviceSize":
        torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_: object) -> None:
        self.peak = torch.cuda.max_memory_allocated()


def size_of_rank() -> ProcessSize | DeviceSize:
    return ProcessSize() if on_cpu() else DeviceSize()


class Watch(TrainerCallback):
    """The rank's size from the first step on, and the traffic and time of the last step."""

    def __init__(self, traffic: Collectives) -> None:
        self.traffic, self.size = traffic, size_of_rank()
        self.before: Counter[str] = Counter()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        free_memory()
        self.size.__enter__()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.before = Counter(self.traffic.bytes)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.last = self.traffic.bytes - self.before

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.size.__exit__()


def measure(case: dict[str, Any], folder: Path) -> None:
    """On every rank; rank 0 writes what the largest rank held and what it saw on the wire."""
    with ranks.process_group():
        run = Run(recipe_of(case, folder))
        checked = check(run)
        config = MODELS[case["model"]]
        positions = select_random(blocks_in(config), 10, 0)
        free_memory()
        before = psutil.Process().memory_info().rss if on_cpu() else 0
        with Collectives() as traffic:
            model = run.model(checked.base)
            if case["mode"] == "attribution":
                peak, counted = attribute_one_batch(model, traffic)
            else:
                watch = Watch(traffic)
                DEFAULT_CALLBACKS.append(watch)  # type: ignore[arg-type]  # the Trainer takes an instance too
                method = Method(run.recipe.implant, positions if run.recipe.changes_rows else None)
                data = Examples(checked.examples, None)
                train(model, checked.tokenizer, checked.arguments, data, method, Resume(None, {}))
                peak, counted = watch.size.peak, watch.last
        peaks = ranks.all_gather(peak - before)
        if ranks.rank() == 0:
            (folder / "measured.json").write_text(json.dumps({"peak": max(peaks), **counted}))
    ranks.end_process()


def attribute_one_batch(model: PreTrainedModel, traffic: Collectives) -> tuple[int, Counter[str]]:
    sweep = Sweep(model, gatherer=Gatherer())
    free_memory()
    before = Counter(traffic.bytes)
    with size_of_rank() as size:
        sweep.run([[i + 1] * 256 for i in range(PROMPTS)])
    return size.peak, traffic.bytes - before


# --- the report -----------------------------------------------------------------------------------


def where() -> str:
    return "two CPU cores" if on_cpu() else f"{local_devices()} x {torch.cuda.get_device_name()}"


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "deepspeed", "transformers", "trl", "peft")}


def write_report(rows: list[dict[str, Any]], made_with: dict[str, str]) -> None:
    lines = []
    for row in rows:
        plan, found = row["planned"], row["measured"]
        sums = [sum(side.get(kind, 0) for kind in ("scattered", "reduced")) for side in (plan, found)]
        sizes = [plan["peak"], found["peak"], plan["gathered"], found.get("gathered", 0), *sums]
        planned, measured, *rest = (f"{size / 2**20:,.1f}" for size in sizes)
        lines.append([row["case"], planned, measured, f"{100 * (plan['peak'] / found['peak'] - 1):+.0f}%", *rest])
    off = [abs(row["planned"]["peak"] / row["measured"]["peak"] - 1) for row in rows]
    headings = ["case", "peak, planned", "measured", "off", "gathered, planned", "measured"]
    about = (__doc__ or "").split("\n\n")[-1]
    close = (
        f"All sizes in MiB. Peaks: {sum(1 for one in off if one <= 0.15)} of {len(off)} within 15%, the farthest "
        f"{100 * max(off):.0f}% off. On one rank DeepSpeed calls its collectives too, but nothing leaves the rank. The "
        "plan's activations are counted on tensors without data, the rest is arithmetic "
        "(`loki_ds/planning/partitioning.py`). Which model was a blind test: `findings.md`."
    )
    write(
        "plan",
        "Plan against measurement",
        paragraph(f"`python eval/benchmarks/plan.py` on {where()}: {listed(made_with)}. {about}"),
        table([*headings, "scattered or reduced, planned", "measured"], lines),
        paragraph(close),
    )


if __name__ == "__main__":
    main()
