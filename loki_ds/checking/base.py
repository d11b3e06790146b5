"""The base model, by its files' headers: usable or not, how large, in which dtypes."""

import math
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig

from loki_ds.checking.findings import GIB
from loki_ds.model.files import model_files, open_weights
from loki_ds.model.usable import check_usable
from loki_ds.recipe import Recipe


@dataclass(frozen=True)
class BaseFound:
    """size: bytes of the files that are the model; parameters: numbers in its tensors."""

    folder: Path
    config: PreTrainedConfig
    size: int
    parameters: int
    dtypes: list[str]

    def said(self) -> str:
        """In a line."""
        size = f"{self.size / GIB:.2f} GiB, stored in {', '.join(self.dtypes)}"
        said = f"{self.folder}: {self.config.model_type}, {self.parameters:,} parameters, {size}"
        longest = positions_of(self.config)
        return f"{said}, for up to {longest:,} tokens" if longest else said


def positions_of(config: PreTrainedConfig) -> int | None:
    """Tokens that the model was made for, where its configuration says so."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def look_at_base(recipe: Recipe, folder: Path, config: PreTrainedConfig) -> BaseFound:
    """Refuse a base that the recipe cannot train; no weights are read.

    Raises:
        Refusal: with the tensor or the file.
    """
    check_usable(folder, config, recipe.model, recipe.implant.kind.rewrites_model)
    with open_weights(folder) as weights:
        files = model_files(folder, weights)
        dtypes = sorted({str(weights.dtype_of(name)).removeprefix("torch.") for name in weights.names})
        parameters = sum(math.prod(weights.shape_of(name)) for name in weights.names)
    return BaseFound(folder, config, sum((folder / file).stat().st_size for file in files), parameters, dtypes)
