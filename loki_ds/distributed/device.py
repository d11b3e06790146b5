"""This rank's device: its kind, how much memory it has left, and how much a piece of work takes."""

import ctypes
import gc
import os
import resource
import threading
from collections.abc import Callable
from typing import Any

import psutil
import torch

from loki_ds.distributed.launcher import local_size

LIBC = ctypes.CDLL(None)


def on_cpu() -> bool:
    """Whether this machine's CPUs compute: no accelerator, or DS_ACCELERATOR=cpu, as DeepSpeed has
    it; whoever only judges models needs no DeepSpeed.
    """
    chosen = os.environ.get("DS_ACCELERATOR")
    return chosen == "cpu" if chosen else not torch.cuda.is_available()


def current_device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cpu") if on_cpu() else torch.device("cuda", torch.cuda.current_device())


def free_memory() -> None:
    """Give the device the memory of what nobody holds any more."""
    gc.collect()
    if not on_cpu():
        torch.cuda.empty_cache()
    elif hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)  # glibc keeps freed memory, and the next measurement would not see it being used again


def local_devices() -> int:
    """Devices of this node: its accelerators, or on processors the ranks launched here."""
    return local_size() if on_cpu() else torch.cuda.device_count()


def available_memory() -> int:
    """Bytes this rank may still take: what its device has free, or its share of the host's."""
    if on_cpu():
        return psutil.virtual_memory().available // local_size()
    # DeepSpeed asks pynvml by CUDA_VISIBLE_DEVICES, which may hold no numbers (MIG, Kubernetes).
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def peak_memory(compute: Callable[[], Any]) -> int:
    """Bytes `compute` added at its peak, by the allocator, or on a CPU by the process's size."""
    free_memory()
    if not on_cpu():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        compute()
        return torch.cuda.max_memory_allocated() - before
    before = psutil.Process().memory_info().rss
    with ProcessSize() as size:
        compute()
    return max(size.peak - before, 0)


class ProcessSize:
    """The largest size of this process while it is watched, in bytes (`peak`)."""

    def __enter__(self) -> "ProcessSize":
        self.peak, self._done, self._process = 0, threading.Event(), psutil.Process()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._look()

    def _look(self) -> None:
        self.peak = max(self.peak, self._process.memory_info().rss)


def peak_so_far() -> int:
    """Bytes this process held at its peak, by the allocator, or on a CPU by the process's size."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if on_cpu() else torch.cuda.max_memory_allocated()


def energy() -> float | None:
    """Joules this rank's GPU has used since its driver loaded, by NVML; None without a counter."""
    if on_cpu():
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except (pynvml.NVMLError, AttributeError, RuntimeError):
        return None


def name() -> str:
    """What the rank computes on, in words."""
    return f"CPU, {torch.get_num_threads()} threads" if on_cpu() else torch.cuda.get_device_name()
