"""What is ours of a training step on two ranks: every mode, with pull and rehearsal.

    python eval/benchmarks/step_parts.py        # eval/reports/step_parts.*, some five minutes

The main job on the tiny world under ZeRO-3, as a user types it; both ranks are looked at from
outside by py-spy (extra `bench`), 200 times a second while they compute. A model of 128 dimensions
computes little, so what is around its products weighs more than it does anywhere else.
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))

from main_job import environment
from reporting import ROOT, command, keep, listed, paragraph, table, where, write

Stack = list[str]  # frames as py-spy writes them, the outermost first
STEPS = 60
NO_DECAY = "training.weight_decay=0"
CASES = {
    "full": ["recipes/tiny/full.yaml"],
    "full, pull": ["recipes/tiny/full.yaml", "implant.pull=30"],
    "LoRA": ["recipes/tiny/lora.yaml"],
    "mask": ["recipes/tiny/loki.yaml", "implant.mode=mask"],
    "rows": ["recipes/tiny/loki.yaml", "implant.mode=rows", NO_DECAY],
    "lora (LoKI*)": ["recipes/tiny/loki.yaml", "implant.mode=lora", NO_DECAY],
    "rows, pull, rehearsal": [
        *("recipes/tiny/loki.yaml", "implant.mode=rows", NO_DECAY, "implant.pull=1", "implant.rehearse.share=0.05"),
    ],
}
# A part and the frames that belong to it.
PARTS = {
    "ours": r"loki_ds/",
    "layers": r"transformers/models/|_engine_run_backward",
    "loss": r"trl/kernels/",
    "optimizer": r"torch/optim/",
    "between ranks": r"torch/distributed/|deepspeed/comm/",
    "DeepSpeed": r"deepspeed/",
    "trainer": r"",
}
OUR_PRODUCTS = ("nn.functional.linear(", " @ ")  # within our modules: the layers' own work
LIBRARY = re.compile(r"torch/(?!optim|distributed|nn/modules/module|autograd)|torch/_tensor|<")


def main() -> None:
    found = {name: shares(arguments) for name, arguments in CASES.items()}
    made_with = where("torch", "transformers", "trl", "deepspeed")
    about = f"""`{command()}`: {listed(made_with)}; two ranks of one thread each. Percent of the samples within
        {STEPS} steps. Ours: wherever code of the project is the last that is no library's, without the products that
        its modules make in a layer's place. DeepSpeed: with the products of the linear layers it puts in theirs."""
    rows = [[name, *(f"{100 * one[part]:.1f}" for part in PARTS)] for name, one in found.items()]
    keep("step_parts", {"where": made_with, "shares": found})
    write("step_parts", "What is ours of a step", paragraph(about), table(["training", *PARTS], rows))


def shares(arguments: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        samples, recipe, *settings = Path(folder) / "samples", *arguments
        job = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", "29678"]
        job += ["launch/implant.py", "--recipe", recipe, *settings, "deepspeed=launch/zero3.json"]
        job += [f"training.max_steps={STEPS}", f"run={folder}/run", "--until", "implant"]
        spy = [str(Path(sys.executable).parent / "py-spy"), "record", "--subprocesses", "--rate", "200"]
        spy += ["--format", "raw", "--output", str(samples), "--", *job]
        done = subprocess.run(spy, cwd=ROOT, env=environment(), check=False, capture_output=True, text=True)
        if not samples.exists():
            raise SystemExit(f"{' '.join(job)} gave no samples:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        counted: Counter[str] = Counter()
        for stack, count in of_steps(samples.read_text()):
            counted[part_of(stack)] += count
    return {part: counted[part] / counted.total() for part in PARTS}


def of_steps(text: str) -> Iterator[tuple[Stack, int]]:
    """Samples within the trainer's steps, from there on."""
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        starts = [i for i, frame in enumerate(frames) if "_run_epoch" in frame]
        if starts:
            yield frames[starts[-1] :], int(count)


def part_of(stack: Stack) -> str:
    """By the innermost frame that is some part's; a library's own code belongs to who asked for
    it.
    """
    inner = [frame for frame in stack if not LIBRARY.search(frame)] or stack[:1]
    if "loki_ds/" in inner[-1]:
        return "layers" if any(product in line_of(inner[-1]) for product in OUR_PRODUCTS) else "ours"
    known = {part: pattern for part, pattern in PARTS.items() if part not in ("ours", "trainer")}
    found = (part for frame in reversed(inner) for part, pattern in known.items() if re.search(pattern, frame))
    return next(found, "trainer")


def line_of(frame: str) -> str:
    """The source of `function (loki_ds/module.py:12)`."""
    file, _, number = frame[frame.index("(") + 1 : -1].rpartition(":")
    return (ROOT / file).read_text().splitlines()[int(number) - 1]


if __name__ == "__main__":
    main()
