"""Whether the experiments beside this file run by PEFT's own script, on a tiny model.

    python eval/peft_board/check.py PEFT_CHECKOUT

Clones the checkout, applies the two patches there, copies the experiments in, and starts
`method_comparison/MetaMathQA/run.py` for each as it stands: its own validation, model, optimizer,
training, evaluation and result file. Three things are others: the model (random, of six tokens, so
that its loss passes the script's sanity check), the texts, and the number of steps. Where there is
no GPU, the script's counters of memory are zero; where there is no bitsandbytes, it is given an
empty one to read the version of.

Then the optimizer and the schedule of each take the board's full number of steps without a
gradient. What is gone of a change by then is the fade.
"""

import argparse
import importlib
import json
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
EXPERIMENTS = HERE / "experiments"
BOARD = Path("method_comparison/MetaMathQA")
STEPS = 20  # of the run; the fade is measured over the board's own
FEWER = {"max_steps": STEPS, "eval_steps": STEPS // 2, "batch_size_eval": 4}
SHORT = {"max_length": 96, "max_new_tokens": 8}
COUNTERS = (
    *("reset_peak_memory_stats", "manual_seed_all", "max_memory_reserved"),
    *("memory_allocated", "memory_reserved", "empty_cache"),
)
MODEL_KEYS = ("model_id", "dtype", "compile", "use_gc", "attn_implementation", "autocast_adapter_dtype")


def main() -> None:
    parser = argparse.ArgumentParser(description="Run each experiment by PEFT's own script on a tiny model.")
    parser.add_argument("checkout", type=Path, help="a clone of github.com/huggingface/peft")
    parser.add_argument("--only", help="in a clone that is ready, one experiment (this script calls itself so)")
    arguments = parser.parse_args()
    if arguments.only:
        print(checked(arguments.checkout, arguments.only), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        clone = ready(arguments.checkout, Path(folder))
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, check=True, capture_output=True, text=True)
        print(f"PEFT at {commit.stdout.strip()}", flush=True)
        for experiment in experiments():
            subprocess.run([sys.executable, __file__, str(clone), "--only", experiment], check=True)


def experiments() -> list[str]:
    """Each as PEFT names it: `lora/llama-3.2-3B-rank32-fade_0.8`."""
    return sorted(str(file.parent.relative_to(EXPERIMENTS)) for file in EXPERIMENTS.glob("*/*/training_params.json"))


def ready(checkout: Path, folder: Path) -> Path:
    """A clone with the patches, the experiments and the tiny model in it."""
    clone = folder / "peft"
    subprocess.run(["git", "clone", "--quiet", checkout.resolve(), clone], check=True)
    # Of any branch but main the script files a run under temporary_results.
    subprocess.run(["git", "switch", "--quiet", "--create", "tiny"], cwd=clone, check=True)
    for patch in sorted(HERE.glob("*.patch")):
        subprocess.run(["git", "apply", patch], cwd=clone, check=True)
    shutil.copytree(EXPERIMENTS, clone / BOARD / "experiments", dirs_exist_ok=True)
    save_tiny_model(folder / "model")
    defaults = clone / BOARD / "default_training_params.json"
    shutil.copy(defaults, defaults.with_suffix(".whole"))
    changes = {**FEWER, "model_id": str(folder / "model"), "generation_kwargs": SHORT}
    defaults.write_text(json.dumps({**json.loads(defaults.read_text()), **changes}))
    return clone


def save_tiny_model(folder: Path) -> None:
    """A random Llama in the proportions of Llama-3.2-3B: as many rows of each layer train."""
    torch.manual_seed(0)
    letters = {"</s>": 0, "?": 1, " ": 2, "e": 3, "a": 4, "1": 5}
    shape: dict[str, Any] = {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "tie_word_embeddings": True,
    }
    heads: dict[str, Any] = {
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=len(letters), **shape, **heads)).save_pretrained(folder)
    spelled = Tokenizer(models.WordLevel(letters, unk_token="?"))
    spelled.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    names = ["input_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=spelled, eos_token="</s>", unk_token="?", model_input_names=names
    )
    tokenizer.save_pretrained(folder)


def checked(clone: Path, experiment: str) -> str:
    """What one experiment came to, in a sentence; ends the script where it fails."""
    board = clone / BOARD
    sys.path[:0] = [str(board), str(clone / "src")]
    stand_in()
    importlib.import_module("data").load_dataset = texts  # type: ignore[attr-defined]
    path = board / "experiments" / experiment
    run(board, path)
    result = json.loads(next((board / "temporary_results").glob(f"{experiment.replace('/', '--')}*.json")).read_text())
    trained, info = result["train_info"], result["run_info"]
    if trained["status"] != "success" or len(trained["metrics"]) != 3:
        raise SystemExit(f"{experiment}: {trained['status']}: {info['error_msg']}")
    share = fade(path, json.loads((board / "default_training_params.whole").read_text())["max_steps"])
    return (
        f"{experiment}: {trained['status']}, {STEPS} steps, {trained['num_trainable_params']:,} numbers trained, "
        f"{info['train_config']['optimizer_kwargs']}; of an unused change {100 * share:.1f}% would be gone"
    )


def run(board: Path, path: Path) -> None:
    """PEFT's `python run.py -v --clean experiments/METHOD/NAME`, in its own folder."""
    sys.argv = ["run.py", "-v", "--clean", str(path.relative_to(board))]
    with chdir(board), redirect_stdout(sys.stderr):
        runpy.run_path("run.py", run_name="__main__")


def stand_in() -> None:
    """Have PEFT's utils.py find what this machine lacks: bitsandbytes, a GPU's counters."""
    named: Any = importlib.import_module("peft.utils")
    found: Callable[[], str] = named.infer_device
    if found() not in ("cuda", "xpu"):
        named.infer_device = lambda: "cuda"  # utils.py asks as it is imported
        for counter in COUNTERS:
            setattr(torch.cpu, counter, lambda *_: 0)
        setattr(torch.cpu, "get_device_name", lambda *_: "none")  # noqa: B010 (mypy knows no such name)
    lacks = find_spec("bitsandbytes") is None
    if lacks:
        sys.modules["bitsandbytes"] = missing = ModuleType("bitsandbytes")
        missing.__path__, missing.__version__ = ["site-packages"], "missing"  # type: ignore[attr-defined]
    utils: Any = importlib.import_module("utils")
    if lacks:
        del sys.modules["bitsandbytes"]  # PEFT itself is to see that there is none
    named.infer_device = utils.infer_device = found
    utils.device = found()


def texts(name: str, *_: Any, **__: Any) -> Dataset | DatasetDict:
    """In the place of `datasets.load_dataset`: a few rows in the columns of each set."""
    asked = [f"{number} eaea {number}?" for number in range(100)]
    if name == "HuggingFaceFW/finewiki":
        return Dataset.from_dict({"text": asked})
    if name == "openai/gsm8k":
        rows = Dataset.from_dict({"question": asked[:8], "answer": ["ae #### 1"] * 8})
        return DatasetDict(train=rows, test=rows)
    answers = ["ae The answer is: 1"] * len(asked)
    columns = {"type": asked, "query": asked, "original_question": asked, "response": answers}
    return DatasetDict(train=Dataset.from_dict(columns))


def fade(path: Path, steps: int) -> float:
    """The share of a change that is gone after so many of the script's steps without a gradient."""
    utils: Any = importlib.import_module("utils")
    peft: Any = importlib.import_module("peft")
    config = utils.get_train_config(str(path / utils.FILE_NAME_TRAIN_PARAMS))
    model = utils.get_model(
        peft_config=peft.PeftConfig.from_pretrained(path) if (path / "adapter_config.json").exists() else None,
        **{name: getattr(config, name) for name in MODEL_KEYS},
    )
    base = [weight.detach().clone() for weight in model.parameters()]
    optimizer, schedule = utils.get_optimizer_and_scheduler(
        model,
        optimizer_type=config.optimizer_type,
        max_steps=steps,
        lr_scheduler_arg=config.lr_scheduler,
        **config.optimizer_kwargs,
    )
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.add_(torch.randn_like(weight))
            weight.grad = torch.zeros_like(weight)
    before = change(model, base)
    for _ in range(steps):
        optimizer.step()
        schedule.step()
    return 1 - float(change(model, base).norm() / before.norm())


@torch.no_grad()
def change(model: Any, base: list[Tensor]) -> Tensor:
    """What has come to the base's weights, of all layers in a row."""
    adapted = [module for module in model.modules() if hasattr(module, "get_delta_weight")]
    if adapted:
        deltas = [module.get_delta_weight("default").float() for module in adapted]
        return torch.cat([delta.to_dense().flatten() if delta.is_sparse else delta.flatten() for delta in deltas])
    return torch.cat([(weight - start).flatten() for weight, start in zip(model.parameters(), base, strict=True)])


if __name__ == "__main__":
    main()
