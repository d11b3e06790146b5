"""Which models it works for, asked of every class that the installed transformers knows.

    python eval/studies/models.py [TYPE ...]

Each type's own default configuration is made tiny, a random model of it is attributed, trained for
two steps in every mode, exported, compared and loaded again, with transformers and PEFT as they
are. What attributes goes through the main job on two ranks under ZeRO-3 (`models_sharded`). What
cannot be is refused with its reason; that is in the table, too. Writes docs/models.md and
eval/reports/models.json.
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from main_job import environment
from peft import PeftModel
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from loki_ds.attribution.self_check import difference, tiny_config
from loki_ds.disk.run_folder import RunFolder
from loki_ds.export.checkpoint import write_trained
from loki_ds.export.collect import Deltas, collect_deltas
from loki_ds.export.products import implant_of, save_implant, write_model
from loki_ds.export.verification import verify
from loki_ds.implanting.mask import keep_through_steps, train_only_rows
from loki_ds.implanting.rows import train_row_deltas
from loki_ds.model.anatomy import has_experts
from loki_ds.model.base import Base, load_model
from loki_ds.model.row_blocks import row_blocks
from loki_ds.recipe.implant import LowRankSection
from loki_ds.recipe.sections import ModelSection
from loki_ds.refusal import Refusal
from loki_ds.selection.positions import Positions

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import REPORTS, ROOT, listed, paragraph, table, where

MODES = ("rows", "lora", "mask")
COLUMNS = ("attribution", *MODES, "adapter", "ZeRO-3")
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
SECONDS = 120  # for one type
# What some classes leave open in their defaults, and published models do not.
FILL: dict[str, dict[str, Any]] = {
    **{name: {"head_dim": 128} for name in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    "nemotron": {"num_key_value_heads": 8},
    "dots1": {"n_routed_experts": 128, "num_experts_per_tok": 6, "n_shared_experts": 2},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "lfm2_moe": {"layer_types": (["conv", "conv", "full_attention", "conv"] * 8)},
    "gemma4_text": {"hidden_size_per_layer_input": 0},  # as the 12B, 31B and 26B-A4B; the small ones have such inputs
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "bamba": {"attn_layer_indices": [1, 3]},
}


def main() -> None:
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    asked = sys.argv[1:]
    found = {}
    for name in asked or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        found[name] = look_at(name)
        print(name, json.dumps(found[name]), flush=True)
    works = [name for name, one in found.items() if isinstance(one.get("attribution"), float)]
    for name, came in sharded(works).items():
        found[name]["ZeRO-3"] = came
        print(name, "ZeRO-3:", came, flush=True)
    if not asked:
        (REPORTS / "models.json").write_text(json.dumps({"where": versions(), "types": found}, indent=1) + "\n")
        (ROOT / "docs/models.md").write_text(page(found, versions()))


def versions() -> dict[str, str]:
    return {name: version for name, version in where("torch", "transformers", "peft").items() if name != "device"}


def look_at(name: str) -> dict[str, Any]:
    """What works for one type: `kind`, and for each column `yes` or what was said; for attribution
    the largest difference from the definition, relative to the largest score.
    """
    found: dict[str, Any] = {}
    torch.manual_seed(0)
    try:
        with at_most(SECONDS):
            config = CONFIG_MAPPING[name](**FILL.get(name, {}))
            if config.get_text_config() is not config:
                return {"refused": f"a wrapper; its text part is {config.get_text_config().model_type}"}
            model = tiny_model(config)
            try:
                blocks = row_blocks(model)
            except Refusal as refusal:
                return {"refused": str(refusal).split(": ", 1)[-1]}
            found["kind"] = kind_of(model)
            found["attribution"] = said(partial(difference, name, type(model)._from_config, config))
            if not isinstance(found["attribution"], float):
                return found
            with tempfile.TemporaryDirectory() as folder:
                base = Path(folder, "base")
                model.save_pretrained(base)
                rows = blocks[0].block.rows
                positions = Positions([[1, i % rows] if i % rows > 1 else [1] for i in range(len(blocks))])
                for mode in MODES:
                    found[mode] = said(partial(trains, mode, base, positions, Path(folder, mode)))
                found["adapter"] = said(lambda: adapts(base, Path(folder)))
    except TookTooLong:
        found.setdefault("refused", f"not finished in {SECONDS} seconds")
    except Exception as error:  # noqa: BLE001 (what a class of transformers raises on its own defaults)
        found["not built"] = one_line(error)
    return found


class TookTooLong(BaseException):
    pass


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TookTooLong

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def said(ask: Callable[[], Any]) -> Any:
    """What it gives, or what it says: a refusal's sentence, or the name of an error that got
    through.
    """
    try:
        return ask()
    except Refusal as refusal:
        return f"no: {str(refusal).split(': ', 1)[-1]}"
    except TookTooLong:
        raise
    except Exception as error:  # noqa: BLE001 (a traceback is what the table must show)
        return f"ERROR {one_line(error)}"


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def sharded(names: Sequence[str]) -> dict[str, str]:
    """What came of the main job under ZeRO-3, by type; the launcher is started again after one that
    did not go through.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
        places = {name: Path(folder, name) for name in names}
        for name, place in places.items():
            torch.manual_seed(0)
            sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "n_positions": 512}
            tiny_model(CONFIG_MAPPING[name](**FILL.get(name, {})), sizes).save_pretrained(place / "base")
            tokenizer.save_pretrained(place / "base")
        launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", "29679"]
        while left := [name for name in sorted(names) if not (places[name] / "sharded").exists()]:
            command = [*launcher, "eval/studies/models_sharded.py", folder]
            done = subprocess.run(command, cwd=ROOT, env=environment(), check=False, capture_output=True, text=True)
            still = [name for name in left if not (places[name] / "sharded").exists()]
            if done.returncode and still:  # the first of them ended the launcher
                (places[still[0]] / "sharded").write_text(f"not finished: the launcher ended with {done.returncode}")
        return {name: (place / "sharded").read_text() for name, place in places.items()}


def tiny_model(config: PreTrainedConfig, sizes: dict[str, int] | None = None) -> PreTrainedModel:
    """A random model of a type's own class with weights large enough that its layers matter."""
    tiny = tiny_config(config)
    for name, size in (sizes or {}).items():
        if hasattr(tiny, name):
            setattr(tiny, name, size)
    tiny.tie_word_embeddings = getattr(config, "tie_word_embeddings", False)
    own_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(tiny)]
    model = own_class._from_config(tiny).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model


def kind_of(model: PreTrainedModel) -> str:
    kinds = {str(kind) for kind in getattr(model.config, "layer_types", None) or ()}
    hybrid = any(word in kind for kind in kinds for word in ("linear", "mamba", "conv", "recurrent"))
    parts = [word for word, holds in (("hybrid", hybrid), ("experts", has_experts(model))) if holds]
    return " and ".join(parts) or "dense"


def trains(mode: str, base: Path, positions: Positions, run: Path) -> str:
    """Two steps, the model's files, the byte check, and the same numbers from the files again."""
    model, folder = load_model(base, torch.float32), RunFolder(run)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if mode == "mask":
        frozen = train_only_rows(model, positions)
    else:
        low_rank = LowRankSection(rank=2, alpha=2.0) if mode == "lora" else None
        train_row_deltas(model, positions, torch.float32, torch.device("cpu"), low_rank, seed=0)
        frozen = {}
    steps(model, frozen)
    expected = model(IDS).logits
    if mode == "mask":
        tensors = {name: value for name, value in model.state_dict().items() if name in before}
        write_trained(base, model, tensors, folder.model)
    else:
        of = Base(base, "", ModelSection(path=str(base), dtype="float32"))
        trained = Deltas(collect_deltas(model))
        write_model(trained, of, positions, folder)
        save_implant(implant_of(trained, of, positions), trained, of, folder)
    checked = verify(base, folder.model, positions)
    if not checked.identical_outside_rows or checked.rows_changed != positions.count:
        raise Refusal(f"{checked.rows_changed} of {positions.count} rows changed, outside {checked.changed_outside}")
    same(load_model(folder.model, torch.float32)(IDS).logits, expected)
    return "yes"


def steps(model: PreTrainedModel, frozen: dict[Tensor, Tensor]) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1 if frozen else 0.0)
    keep_through_steps(optimizer, frozen)
    for _ in range(2):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def adapts(base: Path, folder: Path) -> str:
    """Stock PEFT loads the adapters of rows and lora, and merges them to the model."""
    for mode in ("rows", "lora"):
        adapted = PeftModel.from_pretrained(load_model(base, torch.float32), str(folder / mode / "adapter"))
        merged, model = adapted.merge_and_unload(), load_model(folder / mode / "model", torch.float32)
        for one, other in zip(merged.parameters(), model.parameters(), strict=True):
            if not torch.allclose(one, other, rtol=1e-4, atol=1e-5):
                raise Refusal(f"merged weights differ by {(one - other).abs().max():.1e}")
    return "yes"


def same(found: Tensor, expected: Tensor) -> None:
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    if not difference < 1e-4:
        raise Refusal(f"logits differ by {difference:.1e} of the largest")


# --- the page -------------------------------------------------------------------------------------


def page(found: dict[str, dict[str, Any]], versions: dict[str, str]) -> str:
    works = {name: one for name, one in found.items() if isinstance(one.get("attribution"), float)}
    all_that_follows = (*MODES, "adapter", "ZeRO-3")
    whole = [name for name, one in works.items() if all(one.get(column) == "yes" for column in all_that_follows)]
    about = f"""Every type of causal language model that the installed transformers knows, {len(found)} in all
        ({listed(versions)}). Each is made tiny and random, attributed, trained for two steps in each mode, exported,
        compared with its base byte for byte, loaded again and merged by PEFT: `make models`. {len(works)} attribute
        as the definition does, {len(whole)} of them with all that follows."""
    columns = """Attribution is the largest difference from the definition, relative to the largest score, in
        float64. Where it is 1e-8 or so, the family computes a router, a norm or a recurrence in float32. Your own
        model is compared once more before it is
        attributed, on a tiny copy of its own configuration. ZeRO-3 is the main job on two ranks, in `rows` mode, until
        the byte check."""
    why_not = """With what `loki-ds check` or the main job says. Encoders and models without an FFN are not meant
        to work."""
    wrappers = """Wrappers of text and pictures train their text part. Through the launcher, on two ranks under
        ZeRO-3, and with their own chat templates: Gemma 3 and 4 (the 26B-A4B's form, too), Mistral 3, Qwen2.5-VL and
        Qwen3-VL, InternVL, LLaVA, Qwen3.5 and Qwen3.6-MoE (`tests/distributed/test_families.py`)."""
    parts = [
        "# Which models",
        paragraph(about),
        paragraph(columns),
        paragraph(wrappers),
        table(("type", "layers", *COLUMNS), [row(name, one) for name, one in works.items()], words=9),
        "## Not these",
        paragraph(why_not),
        table(("what is said", "types"), reasons(found, works), words=2),
    ]
    return "\n\n".join(parts) + "\n"


def row(name: str, found: dict[str, Any]) -> list[str]:
    return [
        name,
        found["kind"],
        f"{found['attribution']:.0e}",
        *(str(found.get(column, "not finished")) for column in COLUMNS[1:]),
    ]


def reasons(found: dict[str, dict[str, Any]], works: dict[str, Any]) -> list[tuple[str, str]]:
    """Types by what is said of them."""
    said: dict[str, list[str]] = {}
    for name, one in found.items():
        if name not in works:
            said.setdefault(why(one), []).append(name)
    return sorted((reason, ", ".join(names)) for reason, names in said.items())


def why(found: dict[str, Any]) -> str:
    if "not built" in found:
        return "transformers builds no model from the class's own defaults, made small"
    return re.sub(r"[|<>]", " ", str(found.get("refused") or found["attribution"]).removeprefix("no: "))


if __name__ == "__main__":
    main()
