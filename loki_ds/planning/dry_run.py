"""Work on tensors without data: what a micro-step or an attribution batch computes and holds.

The very code that trains and attributes runs, under torch's fake tensors, in seconds for any size
of model. Nothing is estimated by a formula here: bytes are those of the tensors that live at once,
FLOPs are counted by torch from the shapes. Attention takes torch's fused path, as on a GPU. Knows
nothing of ranks, ZeRO or GPUs.
"""

import gc
import math
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl.trainer.utils import add_fused_lm_head

from loki_ds.attribution.sweep import Sweep
from loki_ds.implanting.training import Method, inputs_want_gradients, peft_config, prepare
from loki_ds.implanting.trl_config import TrainingShape
from loki_ds.model.anatomy import attention_implementation, decoder_layers, decoder_of, parts_around_layers
from loki_ds.model.classes import model_class
from loki_ds.recipe.implant import PeftSection
from loki_ds.recipe.sections import AttributionSection

ATEN = torch.ops.aten
# torch's FLOP counter knows the fused attention of GPUs; the processor's takes the same arguments.
ON_GPU = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: ATEN._scaled_dot_product_flash_attention,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: ATEN._scaled_dot_product_flash_attention_backward,
}
if ATEN._grouped_mm not in flop_registry:

    @register_flop_formula(ATEN._grouped_mm)
    def grouped_product(one: torch.Size, other: torch.Size, *_: Any, **__: Any) -> int:
        """The FLOPs of a product with experts: each row of `one` meets one expert's matrix, `[rows,
        in] x [E, in, out]`, or back, `[in, rows] x [rows, out]`.
        """
        return 2 * math.prod(one) * other[-1]


# Attention without a mask, as sdpa takes it when nothing is padded; on fake tensors transformers
# cannot see that and would make one.
UNPADDED = "sdpa_unpadded"
AttentionInterface.register(UNPADDED, sdpa_attention_forward)
AttentionMaskInterface.register(UNPADDED, lambda *_, **__: None)


@dataclass(frozen=True)
class Part:
    """One module's own parameters (numbers, not bytes), in the order of the forward pass."""

    parameters: tuple[int, ...]
    goes_back: bool  # whether its backward runs, too


@dataclass(frozen=True)
class MicroStep:
    """One forward and backward on one rank.

    Bytes are held besides the parameters and whole gradients.
    """

    parts: tuple[Part, ...]
    tied: bool  # whether the last part, the head, is the first one's weight, the embedding's
    total: int  # parameters
    trained: tuple[int, ...]  # sizes of those that train
    kept: int  # bytes at the end of the forward pass
    peak: int  # bytes
    flops: int
    checkpointing: bool


@dataclass(frozen=True)
class SweepBatch:
    """One batch of the attribution on one rank."""

    total: int  # parameters
    gathered: int  # parameters that its gathers bring together, each as often as it is gathered
    largest: int  # parameters' room that gathered ones take at most
    peak: int  # bytes besides the parameters
    flops: int


@contextmanager
def model_without_data(
    config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool = False, adapter: PeftSection | None = None
) -> Iterator[PreTrainedModel]:
    """The model that a configuration describes with TRL's loss, and PEFT's adapter if any; on fake
    tensors while the block is open.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = model_class(config).from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        if adapter is not None:
            as_lora = adapter.model_copy(update={"method": "lora"})  # PiSSA starts from an SVD
            model = get_peft_model(model, peft_config(as_lora))
    with FakeTensorMode(allow_non_fake_inputs=True):
        _take_shapes(model)
        yield model


def _take_shapes(model: Module) -> None:
    """Put fake tensors on the processor in place of the model's meta tensors; ties are kept."""
    known: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in known:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    known[id(tensor)] = (
                        torch.nn.Parameter(fake, tensor.requires_grad)
                        if isinstance(tensor, torch.nn.Parameter)
                        else fake
                    )
                if tensor is not None:
                    tensors[name] = known[id(tensor)]  # type: ignore[assignment]


def micro_step(model: PreTrainedModel, method: Method, shape: TrainingShape) -> MicroStep:
    """What one micro-step takes, every sequence at its longest, none padded.

    Call within `model_without_data`.
    """
    _make_ready(model, method, shape.checkpointing)
    ids = torch.zeros(shape.sequences, shape.tokens, dtype=torch.long)
    with _order_watched(model) as order, _unpadded(model), Tally([*model.parameters(), *model.buffers()]) as tally:
        log_probs = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
        kept = tally.now
        log_probs.sum().backward()
    head = list(model.get_output_embeddings().parameters())
    # TRL reads the head's weight, no hook sees it run.
    order.append(Part(tuple(parameter.numel() for parameter in head), goes_back=True))
    return MicroStep(
        parts=tuple(order),
        tied=head[0] is model.get_input_embeddings().weight,
        total=sum(parameter.numel() for parameter in model.parameters()),
        trained=tuple(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        kept=kept,
        peak=tally.peak,
        flops=tally.flops,
        checkpointing=shape.checkpointing,
    )


def sweep_batch(model: PreTrainedModel, section: AttributionSection, prompts: int, tokens: int) -> SweepBatch:
    """What one batch of the attribution takes, of `prompts` prompts of `tokens` tokens.

    Call within `model_without_data`.
    """
    model.eval().requires_grad_(False)
    sweep = Sweep(
        model,
        steps=section.steps,
        rule=section.rule,
        target=section.target,
        multiply_by_value=section.multiply_by_value,
    )
    with _unpadded(model), Tally([*model.parameters(), *model.buffers()]) as tally:
        sweep.run([[0] * tokens] * prompts)
    around, head = parts_around_layers(model), model.get_output_embeddings()
    top, layers = _numel(torch.nn.ModuleList([*around, head])), [_numel(layer) for layer in decoder_layers(model)]
    return SweepBatch(
        total=_numel(model),
        gathered=_numel(torch.nn.ModuleList(around)) + top + 2 * sum(layers),
        # What arrives is copied out of one buffer; the next layer's is in flight.
        largest=max(2 * top, 3 * max(layers)),
        peak=tally.peak,
        flops=tally.flops,
    )


def _make_ready(model: PreTrainedModel, method: Method, checkpointing: bool) -> None:
    """Prepare the model as `implanting.training` does; gradients leave once there, as in ZeRO."""
    prepare(model, method, 0)
    if checkpointing:
        model.activation_checkpointing_enable()
    if inputs_want_gradients(model, method.section, checkpointing):
        model.enable_input_require_grads()
    model.train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))


def _unpadded(model: PreTrainedModel) -> AbstractContextManager:
    """While open, sdpa takes no mask; attention that always has one (eager, soft-caps) keeps it."""
    sdpa = decoder_of(model).config._attn_implementation == "sdpa"
    return attention_implementation(model, UNPADDED) if sdpa else nullcontext()


@contextmanager
def _order_watched(model: Module) -> Iterator[list[Part]]:
    """While open, note every module with parameters of its own in the order it runs first."""
    order: list[Part] = []
    seen: set[int] = set()

    def note(module: Module, inputs: Any, _: Any) -> None:
        parameters = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
        seen.update(map(id, parameters))
        if parameters:
            reaches = [*tree_leaves(inputs), *module.parameters(recurse=False)]
            back = any(isinstance(value, Tensor) and value.requires_grad for value in reaches)
            order.append(Part(tuple(parameter.numel() for parameter in parameters), back))

    with ExitStack() as hooks:
        for module in model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                hooks.enter_context(module.register_forward_hook(note))
        yield order


def _numel(module: Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class Tally(TorchDispatchMode):
    """While active, counts FLOPs and the bytes of all tensors that live at once, `now` and at the
    `peak`; not those given at first.
    """

    def __init__(self, besides: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self.seen = weakref.WeakSet(tensor.untyped_storage() for tensor in besides)

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), settings: Any = None) -> Any:
        result = operation(*arguments, **(settings or {}))
        kernel = operation._overloadpacket
        count = flop_registry.get(ON_GPU.get(kernel, kernel))
        self.flops += count(*arguments, **(settings or {}), out_val=result) if count else 0
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        if self.now > self.peak:
            gc.collect()  # what only a cycle of references keeps (torch's checkpointing has some) goes, too
            self.peak = max(self.peak, self.now)
        return result

    def __enter__(self) -> "Tally":
        gc.collect()
        gc.freeze()  # and so a collection looks at what came since, only
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        gc.unfreeze()
        super().__exit__(*error)

    def _freed(self, bytes_: int) -> None:
        self.now -= bytes_
