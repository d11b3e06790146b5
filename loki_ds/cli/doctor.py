"""Can the main job start on this machine? What it needs, what is there, and what for.

DeepSpeed's own report (`ds_report`) says more of its operators.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from huggingface_hub import get_token
from huggingface_hub.constants import HF_HUB_OFFLINE
from rich.table import Table
from torch.utils.cpp_extension import CUDA_HOME, get_cxx_compiler
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from loki_ds.checking.findings import GIB
from loki_ds.checking.versions import installed, newer_than_tested
from loki_ds.distributed.builds import check_builds
from loki_ds.distributed.device import on_cpu
from loki_ds.refusal import Refusal


@dataclass(frozen=True)
class Looked:
    """One thing that was looked at: what is there, what it is needed for, and whether the main job
    cannot start without what is missing.
    """

    at: str
    state: str
    needed_for: str
    stops: bool = False


def examine(runs: Path) -> list[Looked]:
    """This machine, and the disk under `runs`."""
    return [
        _libraries(),
        _devices(),
        _communication(),
        _compiler(),
        _builds(),
        _attention(),
        _disk(runs),
        _hub(),
    ]


def _libraries() -> Looked:
    there = installed()
    newer = newer_than_tested(there)
    said = ", ".join(f"{name} {number}" for name, number in there.items())
    return Looked("libraries", f"{said}{'; newer than tested: ' if newer else ''}{', '.join(newer)}", "everything")


def _devices() -> Looked:
    if on_cpu():
        free = psutil.virtual_memory().available / GIB
        here = f"no accelerator; {psutil.cpu_count(logical=False)} cores, {free:.0f} GiB free"
        return Looked("devices", here, "small models on processors; a GPU for all others")
    each = [
        f"{torch.cuda.get_device_name(i)}, {torch.cuda.mem_get_info(i)[0] / GIB:.0f} GiB free"
        for i in range(torch.cuda.device_count())
    ]
    return Looked("devices", "; ".join(each), "training, attribution, evaluation", stops=not each)


def _communication() -> Looked:
    wanted, there = (
        ("gloo", torch.distributed.is_gloo_available()) if on_cpu() else ("nccl", torch.distributed.is_nccl_available())
    )
    return Looked("communication", wanted if there else f"{wanted} is missing", "more than one rank", stops=not there)


def _compiler() -> Looked:
    """DeepSpeed builds shared memory first on processors, on GPUs only what a recipe asks for."""
    compiler, toolkit = shutil.which(get_cxx_compiler()), "" if on_cpu() else f", CUDA toolkit {CUDA_HOME or 'none'}"
    builds = "DeepSpeed's communication" if on_cpu() else "offloading, with the CUDA toolkit (DeepSpeed's CPU Adam)"
    there = compiler is not None and shutil.which("ninja") is not None
    here = f"{compiler or 'no C++ compiler'}{'' if shutil.which('ninja') else ', no ninja'}{toolkit}"
    return Looked("compiler", here, builds, stops=on_cpu() and not there)


def _builds() -> Looked:
    place = os.environ.get("TORCH_EXTENSIONS_DIR", "torch's own folder")
    try:
        check_builds()
    except Refusal as locked:
        return Looked("builds", str(locked), "every start", stops=True)
    return Looked("builds", f"in {place}, no lock left behind", "every start")


def _attention() -> Looked:
    there = {"flash_attention_2": is_flash_attn_2_available(), "flash_attention_3": is_flash_attn_3_available()}
    names = ["sdpa", *(name for name, here in there.items() if here)]
    return Looked("attention", ", ".join(names), "long or packed sequences go faster with a flash attention")


def _disk(runs: Path) -> Looked:
    beneath = next(folder for folder in (runs, *runs.absolute().parents) if folder.exists())
    free = shutil.disk_usage(beneath).free / GIB
    return Looked("disk", f"{free:.0f} GiB free at {beneath.absolute()}", "the model once more, and each checkpoint")


def _hub() -> Looked:
    login = "logged in" if get_token() else "not logged in (hf auth login)"
    access = "offline: only what is in the cache or a folder" if HF_HUB_OFFLINE else login
    return Looked("model hub", access, "gated models (Llama, Gemma); a folder needs none")


def as_table(looked: list[Looked]) -> Table:
    table = Table(title="this machine")
    for heading in ("", "found", "needed for"):
        table.add_column(heading, overflow="fold")
    for look in looked:
        table.add_row(look.at, f"{look.state}{' (the main job cannot start)' if look.stops else ''}", look.needed_for)
    return table
