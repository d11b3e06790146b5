"""What test_faults.py starts: the main job, whose rank 0 kills itself when Python raises an audit
event on a path.

deepspeed --num_gpus 2 tests/reliability/killed_at.py EVENT PATH_ENDS_WITH --recipe FILE [...]
"""

import os
import signal
import sys

from loki_ds import implant


def kill_at(event: str, path_ends_with: str) -> None:
    def listen(name: str, arguments: tuple) -> None:
        if name == event and str(arguments[0]).endswith(path_ends_with):
            print(f"rank 0 kills itself at {name} of {arguments[0]}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(listen)


if __name__ == "__main__":
    event, path = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")][:2]
    if os.environ["RANK"] == "0":
        kill_at(event, path)
    sys.argv = [argument for argument in sys.argv if argument not in (event, path)]
    implant.main()
