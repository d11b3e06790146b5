"""Can this base be trained and written again?

Asked of its files' headers, before anything is computed: the weights are not read, and the model's
class is built without data to see which tensors it wants.
"""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from loki_ds.distributed.zero.sharding import unsharded
from loki_ds.model.classes import model_class
from loki_ds.model.files import EMBEDDINGS, HEADS, WeightFiles, open_weights
from loki_ds.model.row_blocks import chosen_blocks
from loki_ds.model.row_weights import RowBlock
from loki_ds.model.stored_rows import StoredRows
from loki_ds.recipe.sections import ModelSection, SelectionSection
from loki_ds.refusal import Refusal, short
from loki_ds.selection.blocks import in_words

TRAINABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# What says of a class of transformers that it has an attention; every one has eager.
SUPPORTS = {
    "sdpa": "_supports_sdpa",
    "flash_attention_2": "_supports_flash_attn",
    "flash_attention_3": "_supports_flash_attn",
}
FEW = 0.5  # of a class's tensors; where more are missing, the files have a naming that nobody here knows
LFS = b"version https://git-lfs"
PLAIN = (
    'python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{path}').dequantize().save_pretrained('PLAIN')\""
)


def check_usable(
    folder: Path,
    config: PreTrainedConfig,
    section: ModelSection,
    rows: SelectionSection | None = None,
    everything: bool = False,
) -> PreTrainedModel:
    """Refuse a base that is quantized, not whole, or not what its class wants, and an attention
    that the class does not have. Returns the class's model without data.

    Args:
        rows: what they are chosen from, known in the files as in the class.
        everything: whether all of the class's tensors stand in the files under their names, for a
            whole model will be written into a copy of them.

    Raises:
        Refusal: with the tensor or the file.
    """
    check_plain(folder, config)
    _check_fetched(folder)
    with open_weights(folder) as weights:
        _check_dtypes(folder, weights)
        model = without_data(folder, config, section.trust_remote_code)
        _check_attention(model, section.attention)
        _check_shapes(folder, weights, model)
        _check_ties(folder, weights, config)
        if rows:
            _check_rows(weights, chosen_blocks(model, rows))
        if everything:
            _check_names(folder, weights, model)
        _check_whole(folder, weights, model)
    return model


def check_whole(folder: Path, config: PreTrainedConfig, trust_remote_code: bool) -> None:
    """Refuse files that lack a tensor of the class, by their headers; not of quantized ones."""
    if not _quantization(config):
        with open_weights(folder) as weights:
            _check_whole(folder, weights, without_data(folder, config, trust_remote_code))


def check_plain(model: Path | str, config: PreTrainedConfig) -> None:
    """Refuse quantized weights, by the configuration alone. model: a folder, or a hub id."""
    quantized = _quantization(config)
    if quantized:
        method = quantized.get("quant_method", "?") if isinstance(quantized, dict) else type(quantized).__name__
        raise Refusal(
            f"{model}: by config.json the weights are quantized ({method}), so no row can be trained and written as it "
            f"was; use the plain model, or make one: {PLAIN.format(path=model)}, the tokenizer beside it"
        )


def _quantization(config: PreTrainedConfig) -> Any:
    own, of_text = (getattr(part, "quantization_config", None) for part in (config, config.get_text_config()))
    return own or of_text


def _check_fetched(folder: Path) -> None:
    """Refuse pointers that git-lfs left in the place of files."""
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as handle:
            if handle.read(len(LFS)) == LFS:
                raise Refusal(f"{file}: a pointer of git-lfs, not the weights; fetch them (git lfs pull)")


def _check_dtypes(folder: Path, weights: WeightFiles) -> None:
    for name in sorted(weights.names):
        dtype = weights.dtype_of(name)
        if dtype not in TRAINABLE and name.endswith(".weight"):
            stored, allowed = (str(one).removeprefix("torch.") for one in (dtype, ", ".join(map(str, TRAINABLE))))
            raise Refusal(f"{folder}: tensor {name} is stored in {stored}, allowed are {allowed.replace('torch.', '')}")


def without_data(folder: Path, config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The model's class without data.

    Raises:
        Refusal: the class cannot be built from the folder's configuration.
    """
    try:
        with unsharded(), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model_class(config).from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a class raises on sizes that do not fit
        what = "no causal language model can be built from it"
        raise Refusal(f"{folder / 'config.json'}: {what}: {short(error, 300)}") from error


def _check_attention(model: PreTrainedModel, name: str | None) -> None:
    flag = SUPPORTS.get(name or "")
    if flag is not None and not getattr(model, flag, True):
        raise Refusal(
            f"model.attention is {name}, which {type(model).__name__} does not have in transformers; leave it out"
        )


def _check_shapes(folder: Path, weights: WeightFiles, model: Module) -> None:
    """Tensors that the class does not load are carried along as they are."""
    for name, parameter in model.named_parameters():
        if name in weights.names and weights.shape_of(name) != tuple(parameter.shape):
            stored = list(weights.shape_of(name))
            raise Refusal(f"{folder}: tensor {name} is {stored}, config.json asks for {list(parameter.shape)}")


def _check_ties(folder: Path, weights: WeightFiles, config: PreTrainedConfig) -> None:
    """Refuse a head that stands in the files beside the embedding that the configuration ties it
    to, and is another: sharded it would be tied, whole it would not. Reads these two tensors.
    """
    if not getattr(config, "tie_word_embeddings", False):
        return
    for head in sorted(name for name in weights.names if name.endswith(HEADS)):
        embedding = next((name for name in sorted(weights.names) if name.endswith(EMBEDDINGS)), None)
        if embedding and not torch.equal(weights.read(head), weights.read(embedding)):
            raise Refusal(
                f"{folder}: config.json ties the head to the embedding (tie_word_embeddings), and {head} is another "
                f"than {embedding}; say false there if the head is the model's own, or take it out of the files"
            )


def _check_rows(weights: WeightFiles, chosen_from: list[RowBlock]) -> None:
    """The rows that will be read and written in the files must be the class's own."""
    stored = StoredRows(weights, [row_block.block.name for row_block in chosen_from])
    for i, (block, (known, held)) in enumerate(zip(stored.blocks(), chosen_from, strict=True)):
        pieces = stored.pieces[i]
        if (block.rows, block.width) != (known.rows, known.width):
            said = f"{block.rows} rows of {block.width} numbers" if pieces else "no rows that loki-ds knows"
            by_class = f"{known.rows} of {known.width} by its class"
            raise Refusal(f"{weights.folder}: {in_words(known.name)} has {said} in the files, {by_class}")
        if pieces[0].rows_last != held[0].rows_last and pieces[0].expert is None:
            raise Refusal(f"{weights.folder}: {pieces[0].name} lies the other way round in the class")


def _check_names(folder: Path, weights: WeightFiles, model: PreTrainedModel) -> None:
    for name in as_stored(model, model.state_dict(), weights):
        if name not in weights.names and weights.tied_twin(name) is None:
            raise Refusal(
                f"{folder}: tensor {name}, which the model's class has, is not stored under that name, so what trains "
                "could not be written back; use implant.mode rows"
            )


def _check_whole(folder: Path, weights: WeightFiles, model: PreTrainedModel) -> None:
    """Check by the naming that knows most tensors; where it knows too few, only loading tells."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    missing: set[str] = {*parameters}
    for names in _namings(model, parameters):
        unknown = {name for name in names if name not in weights.names and weights.tied_twin(name) is None}
        missing = min(missing, unknown, key=len)
    optional = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    tied = getattr(model, "all_tied_weights_keys", {})
    missing = {name for name in missing if name not in tied and not any(one.search(name) for one in optional)}
    if missing and len(missing) < FEW * len(parameters):
        first = ", ".join(sorted(missing)[:3])
        raise Refusal(f"{folder}: not there of what config.json asks for: {first} ({len(missing)} in all)")


def as_stored(model: PreTrainedModel, tensors: dict[str, Tensor], weights: WeightFiles) -> dict[str, Tensor]:
    """A class's tensors under the names and in the shapes that the files have: the class's own, or
    those that transformers makes them of, with or without the prefix of a wrapper.

    Where none fit, the last that were tried.
    """
    names = tensors
    for names in _namings(model, tensors):
        if all(name in weights.names or weights.tied_twin(name) for name in names):
            break
    return names


def _namings(model: Any, tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """One after the other, for each takes the experts apart: as the class stands, by what its
    weights were loaded with, without and with a wrapper's prefix.
    """
    yield tensors
    attached = getattr(model, "_weight_conversions", None)
    loaded_with = [attached] if attached else []
    for conversions in (*loaded_with, None, get_model_conversion_mapping(model, add_legacy=False)):
        model._weight_conversions = conversions
        try:
            reverted = revert_weight_conversion(model, tensors)
        finally:
            model._weight_conversions = attached
        yield reverted
