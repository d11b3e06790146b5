"""What started this rank: the launcher's environment and command line, checked before anything
waits on it, and ending with it.

Knows the variables that `deepspeed`, `torchrun` and the like set, and DeepSpeed's processes. Knows
nothing of what ranks say to each other.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from loki_ds.refusal import Refusal

PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# How many processes a command started that gives them no place among ranks.
STARTS_SEVERAL = {"OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec", "SLURM_STEP_NUM_TASKS": "srun"}


def take_place() -> None:
    """Make sure that this process has a place among the ranks: the launcher's, or without a
    launcher that of the only one.

    Raises:
        Refusal: the place is impossible or only half described, or the command asked for nodes or
            devices that it will not get.
    """
    if not os.environ.get("RANK"):
        _check_alone()
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port())
        )
    _check_place()
    command = _deepspeed_command()
    if command is not None:
        _check_command(command.cmdline())


def local_rank() -> int:
    """This rank's number on its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_size() -> int:
    """How many ranks the launcher started on this node.

    DeepSpeed's name comes before torchrun's, which accelerate, not knowing the other, sets to 1.
    """
    return int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))


def end_with_the_launcher() -> None:
    """End this rank when the launcher that started it, or the command above that, is gone.

    DeepSpeed's command does not pass on the signal that ends it, so its ranks would hold devices.
    """
    launcher, command = psutil.Process().parent(), _deepspeed_command()
    if launcher is not None and any(
        name in " ".join(launcher.cmdline()) for name in ("torchrun", "torch.distributed.run")
    ):
        end_with_parent()
    if launcher is not None and command is not None:
        _end_when(
            lambda: not launcher.is_running() or launcher.ppid() != command.pid, "the launcher is gone, this rank ends"
        )


def end_with_parent() -> None:
    """End this process when the one that started it is gone."""
    parent = os.getppid()
    _end_when(lambda: os.getppid() != parent, "the process that asked for this is gone")


def be_no_rank() -> None:
    """Forget what a launcher or container says of ranks: libraries would wait for the others."""
    for name in os.environ.keys() - environment_of_one_process().keys():
        del os.environ[name]


def environment_of_one_process() -> dict[str, str]:
    """The environment without what the launcher put there, for a child that is no rank."""
    launcher = {*PLACE, "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE"}
    return {
        name: value for name, value in os.environ.items() if name not in launcher and not name.startswith("ACCELERATE_")
    }


def _check_alone() -> None:
    for variable, command in STARTS_SEVERAL.items():
        if os.environ.get(variable, "1") != "1":
            raise Refusal(
                f"{command} started {os.environ[variable]} processes that would not know one another ({variable}); "
                "start one torchrun a node by it (launch/slurm.sh), or use deepspeed"
            )


def _check_place() -> None:
    missing = [name for name in PLACE if not os.environ.get(name)]
    if missing:
        raise Refusal(
            f"the launcher's environment has RANK but not {', '.join(missing)}; start with deepspeed or torchrun, or "
            "unset RANK"
        )
    numbers = {name: os.environ[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")}
    for name, value in numbers.items():
        if not value.isdecimal():
            raise Refusal(f"{name} in the launcher's environment is {value!r}, allowed is a whole number from 0 on")
    rank, size = int(numbers["RANK"]), int(numbers["WORLD_SIZE"])
    if size == 0:
        raise Refusal("WORLD_SIZE in the launcher's environment is 0, allowed is 1 or more ranks")
    if rank >= size:
        raise Refusal(
            f"RANK in the launcher's environment is {rank}, allowed with WORLD_SIZE {size} is 0 to {size - 1}"
        )


def _check_command(command: list[str]) -> None:
    """Refuse what DeepSpeed would pass over: without the hostfile it runs on this node alone, for
    no GPUs it takes what it finds.
    """
    for i, word in enumerate(command):
        option, _, value = word.partition("=")
        value = value or (command[i + 1] if i + 1 < len(command) else "")
        if option in ("-H", "--hostfile") and not Path(value).is_file():
            raise Refusal(f"{option} {value}: no such file; DeepSpeed would go on with this node alone")
        if option in ("--num_gpus", "--num_accelerators", "--num_nodes") and value.isdecimal() and int(value) == 0:
            raise Refusal(f"{option} is 0, allowed is 1 or more")
        if Path(word).suffix == ".py" and i > 1:
            return  # what follows are the script's own arguments


def _deepspeed_command() -> psutil.Process | None:
    """The `deepspeed` command above this rank's launcher, on the node it was typed on, or None."""
    launcher = psutil.Process().parent()
    if launcher is None or "deepspeed.launcher.launch" not in launcher.cmdline():
        return None
    return launcher.parent()


def free_port() -> int:
    """A port of this machine that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end_when(gone: Callable[[], bool], says: str) -> None:
    def watch() -> None:
        while not gone():
            time.sleep(0.5)
        print(f"loki-ds: {says}", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def launcher_for(ranks: int) -> list[str]:
    """The command that starts so many ranks on this node: DeepSpeed's, or torchrun where
    CUDA_VISIBLE_DEVICES is set, which DeepSpeed's passes over (and which may hold no numbers).
    """
    port = str(free_port())
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        return ["torchrun", "--nproc-per-node", str(ranks), "--master-port", port]
    return ["deepspeed", "--num_gpus", str(ranks), "--master_port", port]
