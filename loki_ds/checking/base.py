"""The base model, by its files' headers: usable or not, how large, in which dtypes; and the
examples that it is to learn, in words.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedConfig, PreTrainedModel

from loki_ds.attribution.self_check import check_family
from loki_ds.checking.findings import GIB, Findings
from loki_ds.data.dataset import Counts
from loki_ds.data.render_settings import Rendering
from loki_ds.implanting.training import peft_config
from loki_ds.model.base import max_tokens
from loki_ds.model.base_checks import check_usable
from loki_ds.model.files import model_files, open_weights
from loki_ds.model.row_blocks import blocks_of, chosen_blocks
from loki_ds.recipe.implant import ImplantSection, PeftSection
from loki_ds.recipe.sections import ModelSection, SelectionSection
from loki_ds.refusal import Refusal, short
from loki_ds.selection.blocks import Block


@dataclass(frozen=True)
class BaseFound:
    """size: bytes of the files that are the model; parameters: numbers in its tensors; blocks: what
    rows are chosen from, in a run that is confined to some.
    """

    folder: Path
    config: PreTrainedConfig
    size: int
    parameters: int
    dtypes: list[str]
    blocks: list[Block]

    def said(self) -> str:
        """The base in a line."""
        size = f"{self.size / GIB:.2f} GiB, stored in {', '.join(self.dtypes)}"
        said = f"{self.folder}: {self.config.model_type}, {self.parameters:,} parameters, {size}"
        longest = max_tokens(self.config)
        return f"{said}, for up to {longest:,} tokens" if longest else said


def look_at_base(
    section: ModelSection,
    implant: ImplantSection,
    selection: SelectionSection,
    attributes: bool,
    folder: Path,
    config: PreTrainedConfig,
) -> BaseFound:
    """Refuse a base that the recipe cannot train; no weights are read.

    attributes: whether rows are chosen by attribution.

    Raises:
        Refusal: with the tensor or the file.
    """
    chosen_from = selection if implant.kind.confined else None
    model = check_usable(folder, config, section, chosen_from, implant.kind.rewrites_model)
    check_passes(implant, attributes, model)
    if implant.kind.leaves == "adapter":
        check_targets(implant.peft, model)
    with open_weights(folder) as weights:
        files = model_files(folder, weights)
        dtypes = sorted({str(weights.dtype_of(name)).removeprefix("torch.") for name in weights.names})
        parameters = sum(math.prod(weights.shape_of(name)) for name in weights.names)
    size = sum((folder / file).stat().st_size for file in files)
    blocks = blocks_of(chosen_blocks(model, chosen_from)) if chosen_from else []
    return BaseFound(folder, config, size, parameters, dtypes, blocks)


def check_passes(implant: ImplantSection, attributes: bool, model: PreTrainedModel) -> None:
    """Refuse what cannot be asked of the model layer by layer, or of its FFNs.

    model: without data, as its class has it. A family that is not known is proven on a tiny copy.
    """
    if attributes or implant.rehearse:
        check_family(model)


def check_targets(section: PeftSection, model: PreTrainedModel) -> None:
    """Refuse targets PEFT finds nowhere or cannot train. model: without data, takes PEFT's modules.

    Once merged, an adapter on a tied embedding is the head's, too, which it was not in training.
    """
    tied, embedding = model.config.get_text_config().tie_word_embeddings, model.get_input_embeddings()
    head = model.get_output_embeddings()
    key = f"implant.peft.targets is {section.targets!r}"
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            adapted = get_peft_model(model, peft_config(section.model_copy(update={"method": "lora"})))
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        raise Refusal(f"{key}: {short(error, 300)}") from None
    bases = [module.get_base_layer() for module in adapted.modules() if isinstance(module, BaseTunerLayer)]
    if any(base is head for base in bases):
        raise Refusal(f"{key}, among them the head, which the trainer reads past any adapter; leave it out")
    if tied and any(base is embedding for base in bases):
        raise Refusal(f"{key}, among them the embedding, which config.json ties to the head; leave it out")


def data_found(rendering: Rendering, counts: list[Counts], config: PreTrainedConfig, stops: set[int]) -> Findings:
    """The template that renders the examples, what is learned and what is cut.

    counts: of each source, of all its rows or the first. stops: tokens on which the base's
    generation stops (`model.base.stop_tokens`).
    """
    most = max_tokens(config)
    length = rendering.loss.cut.length
    lines = [count.said() for count in counts]
    for count in counts:
        longest = min(count.longest, length or count.longest)
        if most is not None and longest > most:
            lines.append(f"{count.path}: rows of {longest:,} tokens, the model was made for {most:,}")
    notes = rendering.notes + _ends_in_words(rendering, counts, stops)
    return [*(("template", line) for line in notes), *(("data", line) for line in lines)]


def _ends_in_words(rendering: Rendering, counts: list[Counts], stops: set[int]) -> list[str]:
    """Which tokens end the learned turns, and whether the model will stop there."""
    tokenizer, lines = rendering.renderer.tokenizer, []
    for end in dict.fromkeys(end for count in counts for end in count.ends):
        if tokenizer.convert_tokens_to_ids(end) in stops:
            lines.append(f"learned turns end in {end}, on which the base's generation stops")
            continue
        names = ", ".join(map(str, tokenizer.convert_ids_to_tokens(sorted(stops)))) or "nothing"
        lines.append(
            f"learned turns end in {end}, and the base's generation stops on {names}: it will not stop there; put the "
            "token's id into the base's generation_config.json (eos_token_id) before the run"
        )
    return lines
