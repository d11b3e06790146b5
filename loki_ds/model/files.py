"""A checkpoint's safetensors files: one or several, read one tensor at a time.

Loads no model. Knows tied weights that only one side of a tie stored.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loki_ds.refusal import Refusal, short

# safetensors' names of dtypes, as torch has them.
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool, "U8": torch.uint8},
    **{"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
}
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ckpt")
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Beside its weights, what makes a folder a model: an allow-list, for there may be other sets of
# weights with their indices and settings. A tokenizer's code may have files of any name.
BESIDE = (
    "*.json *.txt *.model *.tiktoken *.bpe *.spm *.py *.jinja additional_chat_templates/*.jinja LICENSE* NOTICE* "
    "USE_POLICY*"
).split()
OF_OTHERS = "*.index.json params.json adapter_config.json trainer_state.json".split()
# What families call a head and an embedding that may be one tensor.
HEADS = ("lm_head.weight", "embed_out.weight", "output_projection.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", ".embeddings.weight")


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether tensors of one shape and dtype have equal bytes (-0.0 is not 0.0, NaN is itself)."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


class WeightFiles:
    """A folder of safetensors files, read one tensor at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, str] = {}
        self.names: set[str] = set()
        self._where: dict[str, Any] = {}

    def read(self, name: str) -> Tensor:
        """A tensor by name; a tied one that is not stored is read from its twin."""
        stored = name if name in self.names else self.tied_twin(name)
        return self._where[stored or name].get_tensor(stored or name)

    def dtype_of(self, name: str) -> torch.dtype:
        """A stored tensor's dtype; its values are not read."""
        return DTYPES.get(self._where[name].get_slice(name).get_dtype(), torch.uint8)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """A stored tensor's shape; its values are not read."""
        return tuple(self._where[name].get_slice(name).get_shape())

    def tied_twin(self, name: str) -> str | None:
        """The stored embedding that a head which is not stored shares its memory with."""
        config = config_of(self.folder)
        if not name.endswith(HEADS) or config.get("tie_word_embeddings") is False:
            return None
        return next((one for one in sorted(self.names) if one.endswith(EMBEDDINGS)), None)

    def add(self, shard: str, handle: Any) -> None:
        """Make the tensors of an open shard readable."""
        for name in handle.keys():  # noqa: SIM118 (safetensors' handle is no mapping)
            self.names.add(name)
            self.files[name] = shard
            self._where[name] = handle


def config_of(folder: Path) -> dict[str, Any]:
    """What a checkpoint's configuration file says.

    Raises:
        Refusal: there is none, or it is no JSON object.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refusal(f"{file}: no configuration of a model that can be read: {short(error, 200)}") from None
    if not isinstance(config, dict):
        raise Refusal(f"{file}: {short(repr(config))}, allowed is a JSON object")
    return config


@contextmanager
def open_weights(folder: Path) -> Iterator[WeightFiles]:
    """The folder's single safetensors file, or all shards of its index, as transformers reads."""
    if not folder.is_dir():
        raise Refusal(f"{folder}: no such folder; loki-ds reads safetensors checkpoints")
    weights, index = WeightFiles(folder), folder / INDEX
    shards = _shards_of(index) if index.exists() and not (folder / SINGLE).exists() else [SINGLE]
    handles = []
    try:
        for shard in shards:
            if not (folder / shard).exists():
                raise Refusal(f"{folder}: the file {shard} is missing; loki-ds reads safetensors checkpoints")
            handles.append(safe_open(folder / shard, "pt"))
            weights.add(shard, handles[-1])
        yield weights
    except SafetensorError as error:
        raise Refusal(f"{folder}: not a whole safetensors checkpoint: {error}") from None
    finally:
        for handle in handles:
            handle.__exit__(None, None, None)


def model_files(folder: Path, weights: WeightFiles) -> list[Path]:
    """The model's files, relative to its folder: the index's weights and what is beside them."""
    stored = {Path(name) for name in set(weights.files.values())}
    # An index that is left over beside a single file names other ones.
    own_index = {Path(INDEX)} if stored != {Path(SINGLE)} and (folder / INDEX).is_file() else set()
    return sorted({*files_beside(folder), *own_index, *stored})


def files_beside(folder: Path) -> list[Path]:
    """Files beside weights, relative to the folder: configuration, tokenizer, templates, code."""
    beside = {file.relative_to(folder) for pattern in BESIDE for file in folder.glob(pattern) if file.is_file()}
    return sorted(file for file in beside if not any(map(file.match, OF_OTHERS)))


def other_weights(folder: Path, weights: WeightFiles) -> list[str]:
    """Weight files that the folder's index does not name: another program might read them."""
    present = {file.name for file in folder.iterdir() if file.suffix in WEIGHTS}
    return sorted(present - set(weights.files.values()))


def _shards_of(index: Path) -> list[str]:
    """The files that an index names; all of them must lie beside it."""
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise Refusal(f"{index}: not an index of safetensors shards (a JSON object with a weight_map)") from None
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or shard == "..":
            raise Refusal(f"{index}: names the shard {shard!r}, allowed are files in the same folder")
    return shards
