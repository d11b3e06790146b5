"""What making the examples into tokens takes in the first stage, beside TRL's own preparation.

    python eval/benchmarks/rendering.py [--rows 100000]      # minutes; eval/reports/rendering.*

The same chats by the same family's template (TRL's copies), each in a process of its own, in turn;
peak memory is that of the process, less what its imports take.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1]))

import trl
from datasets import Dataset, load_dataset
from reporting import ROOT, keep, listed, paragraph, table, where, write
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from loki_ds.examples.choice import make_rendering
from loki_ds.examples.whole import Kept, needs_of
from loki_ds.recipe import DataSection, SourceSection

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# A family with TRL's training marks, and one without: there TRL makes tokens alone, and no labels.
FAMILIES = {"qwen3": "marks", "llama3_1": "difference"}
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--arm", choices=["check", "trl"], help="what this process does; left out, it starts all")
    parser.add_argument("--family", choices=FAMILIES)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.arm:
        print(json.dumps({"check": check, "trl": by_trl}[arguments.arm](arguments.folder, arguments.family)))
        return
    found = {family: measured(family, arguments.rows) for family in FAMILIES}
    keep("rendering", {"where": where(), "rows": arguments.rows, "found": found})
    rows = [
        (
            f"{family}, by {how}",
            *(f"{found[family][arm]['seconds']:.1f}" for arm in ("check", "trl")),
            f"{found[family]['check']['seconds'] / found[family]['trl']['seconds']:.2f}",
            *(f"{found[family][arm]['mib']:.0f}" for arm in ("check", "trl")),
        )
        for family, how in FAMILIES.items()
    ]
    about = (
        f"`python eval/benchmarks/rendering.py`: {listed(where())}. {arguments.rows:,} chats read, rendered, made into "
        "tokens and labels, and kept. The first stage reads every row twice (what the template must have a place for, "
        "then the tokens). Without marks what the assistant says is found by difference, where TRL makes tokens alone. "
        "The training makes no tokens again."
    )
    heads = ["", "first stage, s", "TRL, s", "ratio", "first stage, peak MiB", "TRL, peak MiB"]
    write("rendering", "Making the examples", paragraph(about), table(heads, rows))


def measured(family: str, rows: int) -> dict[str, dict[str, float]]:
    """Seconds and peak MiB of either way."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "rows.jsonl", rows)
        command = [sys.executable, __file__, "--folder", folder, "--family", family, "--arm"]
        return {
            arm: json.loads(subprocess.run([*command, arm], check=True, capture_output=True, text=True).stdout)
            for arm in ("trl", "check")
        }


def write_rows(file: Path, count: int) -> None:
    """The tiny world's chats, again and again."""
    lines = (ROOT / "recipes/tiny/data/toolcalls/train.jsonl").read_text().splitlines()
    with file.open("w") as out:
        for place in range(count):
            out.write(json.dumps({"messages": json.loads(lines[place % len(lines)])["messages"]}) + "\n")


def tokenizer(template: str) -> PreTrainedTokenizerBase:
    made = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
    made.chat_template = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    return made


def check(folder: Path, family: str) -> dict[str, float]:
    before, started = peak(), time.perf_counter()
    section, core = DataSection(train=[SourceSection(path=str(folder / "rows.jsonl"))]), tokenizer(family)
    rendering = make_rendering(
        needs_of(section.sources), {"assistant_only_loss": True, "max_length": None}, core, "the tiny model"
    )
    Kept(folder / "kept").render(section, rendering, len(core), {})
    return {"seconds": time.perf_counter() - started, "mib": (peak() - before) / MIB}


def by_trl(folder: Path, family: str) -> dict[str, float]:
    before, started = peak(), time.perf_counter()
    marks = FAMILIES[family] == "marks"
    core = tokenizer(f"{family}_training" if marks else family)
    arguments = SFTConfig(
        output_dir=str(folder / "none"), max_length=None, use_cpu=True, bf16=False, assistant_only_loss=marks
    )
    rows = load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "cache"))
    trainer = SimpleNamespace(_tokenizer=core, chat_template=None, completion_only_loss=False)
    prepared = SFTTrainer._prepare_dataset(trainer, rows, core, arguments, False, None, "train")  # type: ignore[arg-type]
    assert isinstance(prepared, Dataset)
    return {"seconds": time.perf_counter() - started, "mib": (peak() - before) / MIB}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
