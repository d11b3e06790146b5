"""The GPUs that tests run on: this machine's, or pretended ones, built once (torch keeps them until
their source or torch changes).
"""

import shutil
from pathlib import Path

import torch
from torch.utils.cpp_extension import load

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).parent / "fake_cuda.cpp"
BUILD = ROOT / "build/pretended"


def environment_of_gpus(count: int) -> dict[str, str] | str:
    """The environment of processes on so many GPUs; where there are none, why."""
    if torch.cuda.is_available():
        there = torch.cuda.device_count()
        return {"DS_ACCELERATOR": "cuda"} if there >= count else f"needs {count} GPUs, this machine has {there}"
    if torch.version.cuda is not None or shutil.which("c++") is None:
        return "pretended GPUs need a torch for processors and a C++ compiler"
    build_device()
    path = f"{ROOT / 'tests/pretended'}:{ROOT}"
    return {"DS_ACCELERATOR": "cuda", "FAKE_GPUS": str(count), "PYTHONPATH": path}


def build_device() -> None:
    """Compile `fake_cuda.cpp` into `build/pretended/`: a minute of one core at the first call."""
    BUILD.mkdir(parents=True, exist_ok=True)
    flags = ["-O1", "-g0", "-Wno-parentheses"]
    load("fake_cuda", [str(SOURCE)], build_directory=str(BUILD), extra_cflags=flags, is_python_module=False)
