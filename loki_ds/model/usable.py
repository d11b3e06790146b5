"""Can this base be trained and written again?

Asked of its files' headers, before anything is computed: the weights are not read, and the model's
class is built without data to see which tensors it wants.
"""

import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from loki_ds.model.files import WeightFiles, open_weights
from loki_ds.refusal import Refusal
from loki_ds.zero.model import unsharded

LFS = b"version https://git-lfs"
PLAIN = (
    'python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{path}').dequantize().save_pretrained('PLAIN')\""
)


def check_usable(folder: Path, config: PreTrainedConfig, trust_remote_code: bool) -> None:
    """Refuse a base that is quantized, not whole, or not what its class wants.

    Raises:
        Refusal: with the tensor or the file.
    """
    check_plain(folder, config)
    _check_fetched(folder)
    with open_weights(folder) as weights:
        _check_tensors(folder, weights, config, trust_remote_code)


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


def _check_tensors(folder: Path, weights: WeightFiles, config: PreTrainedConfig, trust_remote_code: bool) -> None:
    """Compare names and shapes with the class; tensors that it does not load are carried along as
    they are.
    """
    for name in sorted(weights.names):
        dtype = weights.dtype_of(name)
        if not dtype.is_floating_point and name.endswith(".weight"):
            raise Refusal(
                f"{folder}: tensor {name} is stored in {dtype}, allowed are float64, float32, float16, bfloat16"
            )
    with unsharded(), torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    for name, parameter in model.named_parameters():
        if name in weights.names and weights.shape_of(name) != tuple(parameter.shape):
            stored = list(weights.shape_of(name))
            raise Refusal(f"{folder}: tensor {name} is {stored}, config.json asks for {list(parameter.shape)}")
