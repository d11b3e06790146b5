"""A step of each variant in turn, every variant alive in a process of its own.

A slow moment of the machine hits all of them. In one process they would share a heap: one variant's
peak would hide in what another has freed, and on a CPU one would pay for the holes of the others
(up to half as much again).
"""

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

READY, STEP, END = "ready", "step", "end"


def in_turns(
    take_steps: Callable[..., None], names: Sequence[str], rounds: int, *given: Any
) -> dict[str, tuple[list[float], Any]]:
    """Of each variant the seconds of its steps, and what it says of itself at the end.

    take_steps: called with a variant's name, its end of a pipe, and what is `given`. It says READY,
    answers each STEP with the seconds of one, and END with its last word. They get ready one after
    the other.
    """
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name in names:
        pipes[name], theirs = context.Pipe()
        context.Process(target=take_steps, args=(name, theirs, *given)).start()
        theirs.close()  # so that we hear of the end of a process
        pipes[name].recv()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            seconds[name].append(asked(pipe, STEP))
    last = {name: asked(pipe, END) for name, pipe in pipes.items()}
    for process in multiprocessing.active_children():
        process.join()  # it gives its memory back
    return {name: (seconds[name], last[name]) for name in names}


def asked(pipe: Connection, what: str) -> Any:
    pipe.send(what)
    return pipe.recv()
