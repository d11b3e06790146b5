"""Can this base be trained and written again?

Asked of its files' headers, before anything is computed: the weights are not read, and the model's
class is built without data to see which tensors it wants.
"""

import warnings
from pathlib import Path

import torch
from torch.nn import Module
from transformers import PreTrainedConfig, PreTrainedModel

from loki_ds.model.files import WeightFiles, open_weights
from loki_ds.model_class import model_class
from loki_ds.recipe import ModelSection
from loki_ds.refusal import Refusal
from loki_ds.zero.model import unsharded

TRAINABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# What says of a class of transformers that it has an attention; every one has eager.
SUPPORTS = {
    "sdpa": "_supports_sdpa",
    "flash_attention_2": "_supports_flash_attn",
    "flash_attention_3": "_supports_flash_attn",
}
LFS = b"version https://git-lfs"
PLAIN = (
    'python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{path}').dequantize().save_pretrained('PLAIN')\""
)


def check_usable(folder: Path, config: PreTrainedConfig, section: ModelSection, written_whole: bool) -> None:
    """Refuse a base that is quantized, not whole, or not what its class wants, and an attention
    that the class does not have.

    written_whole: whether all of the class's tensors will be written into a copy of the files, and
    so must stand there under their names.

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
        if written_whole:
            _check_names(folder, weights, model)


def check_plain(model: Path | str, config: PreTrainedConfig) -> None:
    """Refuse quantized weights, by the configuration alone. model: a folder, or a hub id."""
    quantized = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if quantized:
        method = quantized.get("quant_method", "?") if isinstance(quantized, dict) else type(quantized).__name__
        raise Refusal(
            f"{model}: by config.json the weights are quantized ({method}), so no row can be trained and written as it "
            f"was; use the plain model, or make one: {PLAIN.format(path=model)}, the tokenizer beside it"
        )


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
        said = " ".join(str(error).split())[:300]
        raise Refusal(f"{folder / 'config.json'}: no causal language model can be built from it: {said}") from error


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


def _check_names(folder: Path, weights: WeightFiles, model: Module) -> None:
    for name in model.state_dict():
        if name not in weights.names and weights.tied_twin(name) is None:
            raise Refusal(
                f"{folder}: tensor {name}, which the model's class has, is not stored under that name, so what trains "
                "could not be written back; use implant.mode rows"
            )
