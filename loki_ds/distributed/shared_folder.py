"""Nodes that may not share the run folder: who sees what rank 0 writes, and files brought home.

A node without the shared folder has its own of that name; what its ranks write, nobody else sees.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from loki_ds.disk.run_folder import RunFolder
from loki_ds.distributed import ranks
from loki_ds.distributed.launcher import local_rank, local_size


class SharedFolder:
    """The run folder as the ranks see it, once rank 0 has locked it. All ranks make one together.

    seen: whether this rank sees what rank 0 writes; by_all: whether every rank does.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.seen = folder.holder() == ranks.on_first_rank(folder.holder)
        self.by_all = all(ranks.all_gather(self.seen))

    def apart(self, files: Sequence[Path]) -> list[Path]:
        """This rank's share of its node's files if they are not in rank 0's folder, else none."""
        return [] if self.seen else list(files[local_rank() :: local_size()])

    def bring_home(self, files: Sequence[Path], take: Callable[[str, bytes], None]) -> None:
        """Move the nodes' files to rank 0, one of each rank at a time. All ranks call it.

        files: this rank's (`apart`). take: called on rank 0 with each file's name and content.
        """
        for turn in range(max(ranks.all_gather(len(files)))):
            file = files[turn] if turn < len(files) else None
            for sent in ranks.all_gather((file.name, file.read_bytes()) if file else None):
                if sent is not None and ranks.rank() == 0:
                    take(*sent)
        ranks.barrier()
        for file in files:
            file.unlink()
