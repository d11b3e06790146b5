"""Ranks: joining the others, doing something on the first one for all, and ending together.

Knows torch.distributed. Knows nothing of models or of how they are partitioned.
"""

import atexit
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import deepspeed
import torch

from loki_ds.distributed.builds import check_builds, say_if_it_builds
from loki_ds.distributed.launcher import end_with_the_launcher, local_rank, take_place
from loki_ds.refusal import Refusal, full_disks_refused

Result = TypeVar("Result")
# The others wait in a collective while the first rank renders the examples, or copies, compares and
# hashes a model. DeepSpeed's ten minutes are too short for a large one.
LONGEST_WAIT = timedelta(hours=6)


def end_process() -> NoReturn:
    """End a finished rank: Python's exit handlers (trackers finish there), then out, without
    tearing down the libraries' C++ threads.

    That teardown was seen to abort finished ranks ("terminate called without an active exception").
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def process_group() -> Iterator[None]:
    """Join the launcher's ranks, or be the only one, and leave together at the end.

    A rank that fails says why and ends at once, without leaving: on NCCL leaving waits for the
    others, who wait for this one in a collective. The launcher sees its status and ends them.
    """
    take_place()
    check_builds()
    # Before the group is joined: DeepSpeed binds NCCL's group to this rank's GPU, and collectives
    # of objects go to the current one, which is the first for all ranks until somebody says so.
    deepspeed.get_accelerator().set_device(local_rank())
    say_if_it_builds()
    deepspeed.init_distributed(timeout=LONGEST_WAIT)
    _unname_shared_buffer()
    end_with_the_launcher()
    try:
        yield
    except Refusal:
        raise  # `shown_once` says it, and ends the process as well
    except BaseException as error:  # noqa: BLE001 (whatever it is, the others must not wait for this rank)
        _say_and_end(error)
    if joined():
        torch.distributed.destroy_process_group()


def _say_and_end(error: BaseException) -> NoReturn:
    """End a rank that failed, with its traceback, or the status that it wanted to exit with."""
    status = error.code if isinstance(error, SystemExit) else 1
    if not isinstance(error, SystemExit) or isinstance(status, str):
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(bool(status)))


def _unname_shared_buffer() -> None:
    """Remove the name of DeepSpeed's shared buffer once every CPU rank has it open: DeepSpeed
    leaves 66 MB a rank in memory for ever.
    """
    barrier()
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_{rank()}"
    Path("/dev/shm", name).unlink(missing_ok=True)


def joined() -> bool:
    """Whether this process is one of the ranks of a job (`process_group`)."""
    return torch.distributed.is_initialized()


def rank() -> int:
    return torch.distributed.get_rank() if joined() else 0


def world_size() -> int:
    return torch.distributed.get_world_size() if joined() else 1


def on_first_rank(compute: Callable[[], Result]) -> Result:
    """Run `compute` on rank 0 and give its result, or its refusal, to all ranks (so all stop)."""
    outcome = [_outcome(compute) if rank() == 0 else (None, None)]
    if world_size() > 1:
        torch.distributed.broadcast_object_list(outcome)
    return _result(outcome, 0)


def on_each_node(compute: Callable[[], Result]) -> Result:
    """Run `compute` on the first rank of every node and give its result to that node's ranks; a
    refusal of any goes to all ranks.
    """
    outcomes = all_gather(_outcome(compute) if local_rank() == 0 else (None, None))
    return _result(outcomes, rank() - local_rank())


def _outcome(compute: Callable[[], Any]) -> tuple[Any, str | None]:
    """What `compute` gives, or else why it refuses."""
    try:
        with full_disks_refused():
            return compute(), None
    except Refusal as refusal:
        return None, str(refusal)


def _result(outcomes: list[tuple[Any, str | None]], mine: int) -> Any:
    """This rank's result, unless any refused."""
    for _, refused in outcomes:
        if refused is not None:
            raise Refusal(refused)
    return outcomes[mine][0]


def check_same(what: str, digest: str) -> None:
    """Raise on every rank unless all of them hold the same `digest`."""
    digests = all_gather(digest)
    if len(set(digests)) > 1:
        raise Refusal(
            f"{what} differ between ranks: {', '.join(f'rank {r} has {d[:12]}' for r, d in enumerate(digests))}"
        )


def barrier() -> None:
    if world_size() > 1:
        torch.distributed.barrier()


def all_gather(value: Result) -> list[Result]:
    """Every rank's value, in the order of ranks, on every rank."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        torch.distributed.all_gather_object(values, value)
    return values
