"""What each stage took, in the run folder's `costs.json`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from loki_ds.disk.run_folder import RunFolder
from loki_ds.distributed import device, ranks
from loki_ds.distributed.launcher import local_size


@contextmanager
def cost_of(folder: RunFolder, stage: str) -> Iterator[None]:
    """Note what a stage takes; all ranks go through it.

    A resumed stage counts from where it resumed.
    """
    started, energy = time.monotonic(), device.energy()
    yield
    seconds = time.monotonic() - started
    used = None if energy is None else (device.energy() or 0) - energy
    peaks, joules = ranks.all_gather(device.peak_so_far()), ranks.all_gather(used)
    cost = {
        "seconds": round(seconds, 1),
        "peak_gib_per_rank": round(max(peaks) / 2**30, 3),
        "joules": None if None in joules else round(sum(j for j in joules if j is not None)),
        "ranks": ranks.world_size(),
        "nodes": ranks.world_size() // local_size(),
        "device": device.name(),
    }
    ranks.on_first_rank(lambda: folder.note_cost(stage, cost))
