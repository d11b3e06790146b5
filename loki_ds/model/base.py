"""A recipe's base model: folder, configuration, tokenizer and the model itself, or one sentence."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jinja2 import TemplateError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from loki_ds.distributed.device import current_device
from loki_ds.distributed.zero.sharding import is_sharded
from loki_ds.model.classes import load_whole
from loki_ds.model.files import BESIDE
from loki_ds.recipe.sections import ModelSection
from loki_ds.refusal import Refusal, short

# What a chat template raises on a conversation it was not made for.
UNRENDERABLE = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
WANTED = ["*.safetensors", *BESIDE]  # of a model on the hub
UNWANTED = ["consolidated*", "original/*"]  # other sets of weights


class Base(NamedTuple):
    """The base model: its folder, the digest of its weights, and what the recipe says of it."""

    folder: Path
    digest: str
    section: ModelSection


def locate_model(section: ModelSection) -> Path:
    """The base model's folder; a hub id is fetched first.

    Raises:
        Refusal: neither a folder with a safetensors checkpoint nor a hub id that can be fetched.
    """
    path = Path(section.path)
    if not path.is_dir():
        path = _fetch(section)
    adapter = path / "adapter_config.json"
    if adapter.exists() and not (path / "config.json").exists():
        raise Refusal(f"model.path {section.path}: a PEFT adapter (adapter_config.json), not a model; name its base")
    if not (path / "config.json").exists() or not list(path.glob("*.safetensors")):
        raise Refusal(
            f"model.path {section.path}: the folder has no config.json with safetensors weights beside it{_gguf(path)}"
        )
    if adapter.exists():
        raise Refusal(
            f"model.path {section.path}: adapter_config.json lies beside the weights, so transformers would put that "
            "adapter on them, and no file would show it; move it away, or merge it"
        )
    load_configuration(path, section.trust_remote_code)
    return path


def _gguf(folder: Path) -> str:
    """What to do with a model that is only there as GGUF."""
    files = sorted(folder.glob("*.gguf"))
    if not files:
        return ""
    return (
        f'; {files[0].name} can be made a plain model: python -c "from transformers import AutoModelForCausalLM as M; '
        f"m = M.from_pretrained('{folder}', gguf_file='{files[0].name}'); del m.hf_quantizer, "
        "m.config.quantization_config; m.save_pretrained('PLAIN')\", the tokenizer likewise"
    )


def load_configuration(path: Path | str, trust_remote_code: bool, revision: str | None = None) -> PreTrainedConfig:
    """The configuration in a folder, or of a hub id.

    Raises:
        Refusal: there is none that transformers can read.
    """
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    except Exception as error:  # noqa: BLE001 (whatever a model's own code or a library raises)
        where = (
            f"{Path(path) / 'config.json'}: not" if Path(path).is_dir() else f"model.path {path}: no folder, and not"
        )
        raise Refusal(f"{where} a configuration that transformers can read: {_why(error, trust_remote_code)}") from None


def max_tokens(config: PreTrainedConfig) -> int | None:
    """Tokens that the model was made for, where its configuration says so."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_padding(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, origin: str | Path) -> None:
    """Refuse a token that fills batches up and has no row in the model's embedding."""
    pad, rows = tokenizer.pad_token_id, config.get_text_config().vocab_size
    if pad is not None and pad >= rows:
        raise Refusal(
            f"{origin}: batches would be filled up by {tokenizer.pad_token!r} (id {pad}), and the model's embedding "
            f"has {rows} rows; name another pad_token in its tokenizer_config.json"
        )


def load_tokenizer(path: Path | str, trust_remote_code: bool, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The model's own tokenizer.

    Raises:
        Refusal: there is none, or transformers cannot read it.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    except Exception as error:  # noqa: BLE001 (tokenizers raises bare ones)
        raise Refusal(
            f"{path}: no tokenizer that transformers can read beside the model: {_why(error, trust_remote_code)}"
        ) from None
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes an empty one of nothing
        raise Refusal(f"{path}: no tokenizer that transformers can read beside the model: it has no words")
    return tokenizer


def _why(error: Exception, trusted: bool) -> str:
    """What went wrong, with the recipe's key where it asks for trust."""
    wanted = "trust_remote_code" in str(error) and not trusted
    return "it brings code of its own (model.trust_remote_code=true runs it)" if wanted else short(error, 300)


def stop_tokens(path: Path | str, config: PreTrainedConfig) -> set[int]:
    """Ids of the tokens that stop generation, by the generation_config.json or else config.json."""
    ids, file = None, Path(path) / "generation_config.json"
    if file.exists():
        try:
            json.loads(file.read_text(encoding="utf-8"))  # transformers takes what is none for nothing
            ids = GenerationConfig.from_pretrained(path).eos_token_id
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise Refusal(f"{file}: transformers does not take it: {short(error, 300)}") from None
    if ids is None:
        ids = config.get_text_config().eos_token_id
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def check_attention_installed(name: str | None) -> None:
    """Refuse, before any computing, an attention whose package is missing or does not run here."""
    available = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
    if name in available and not available[name]():
        raise Refusal(f"model.attention is {name}, which needs its package and a GPU it runs on; sdpa needs neither")


def _fetch(section: ModelSection) -> Path:
    try:
        return Path(
            snapshot_download(section.path, revision=section.revision, allow_patterns=WANTED, ignore_patterns=UNWANTED)
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Refusal(
            f"model.path {section.path}: no such folder, and no model of that name could be fetched from the hub: "
            f"{short(error, 200)}"
        ) from None


def load_model(folder: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a causal language model from `folder`, frozen, in eval mode, on this rank's device.

    Under a live ZeRO-3 configuration (Trainer's arguments hold one) transformers builds it
    partitioned from the start.

    Raises:
        Refusal: a tensor of the class that is not there; transformers would make one at random. Or
            tensors that transformers takes apart for the class, and cannot where it is partitioned.
    """
    try:
        model: Any = load_whole(folder, trust_remote_code, dtype=dtype)
    except RuntimeError as error:
        if not str(error).startswith("Failed to apply weight conversion"):
            raise
        tensor = str(error).split("'")[1]
        raise Refusal(
            f"{folder}: transformers cannot make {tensor} of the files' tensors where ZeRO-3 partitions it; take "
            "deepspeed: launch/zero2.json"
        ) from None
    if not is_sharded(model):
        model.to(current_device())
    return model.eval().requires_grad_(False)
