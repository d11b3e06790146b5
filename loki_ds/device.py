"""This rank's device: what kind it is, how much memory it has left, and how much a piece of work takes."""

import ctypes
import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import deepspeed
import psutil

LIBC = ctypes.CDLL(None)


def on_cpu() -> bool:
    """Whether DeepSpeed runs on this machine's processors (no accelerator, or DS_ACCELERATOR=cpu)."""
    return deepspeed.get_accelerator().device_name() == "cpu"


def free_memory() -> None:
    """Give the device the memory of what nobody holds any more."""
    gc.collect()
    deepspeed.get_accelerator().empty_cache()
    if on_cpu() and hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)  # glibc keeps freed memory, and the next measurement would not see it being used again


def available_memory() -> int:
    """Bytes this rank may still take: what its device has free, or its share of what the host has."""
    accelerator = deepspeed.get_accelerator()
    return available_host_memory() if on_cpu() else accelerator.available_memory(accelerator.current_device())


def available_host_memory() -> int:
    """Bytes of host memory this rank may still take: its share of what is free."""
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))


def peak_memory(compute: Callable[[], Any]) -> int:
    """Bytes that `compute` took at its peak above what was held before: the allocator's count, or on a CPU the process's size."""
    free_memory()
    if not on_cpu():
        accelerator = deepspeed.get_accelerator()
        accelerator.reset_peak_memory_stats()
        before = accelerator.memory_allocated()
        compute()
        return accelerator.max_memory_allocated() - before
    process, sizes, done = psutil.Process(), [], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.002):
            sizes.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        compute()
        sizes.append(process.memory_info().rss)
    finally:
        done.set()
        watcher.join()
    return max(max(sizes) - before, 0)
