"""Build the pretended device, once: torch keeps it until its source or torch changes."""

from pathlib import Path

from torch.utils.cpp_extension import load

SOURCE = Path(__file__).parent / "fake_cuda.cpp"
BUILD = Path(__file__).parents[2] / "build/pretended"


def build_device() -> None:
    """Compile `fake_cuda.cpp` into `build/pretended/`: a minute of one core at the first call."""
    BUILD.mkdir(parents=True, exist_ok=True)
    flags = ["-O1", "-g0", "-Wno-parentheses"]
    load("fake_cuda", [str(SOURCE)], build_directory=str(BUILD), extra_cflags=flags, is_python_module=False)
