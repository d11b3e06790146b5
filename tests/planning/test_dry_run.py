"""The dry run computes what the real work computes: the same bytes and the same FLOPs, on tensors
without data.
"""

from pathlib import Path

import pytest
import torch
import transformers
from conftest import FAMILIES, HYBRIDS, SMALL
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from loki_ds.attribution.sweep import Sweep
from loki_ds.implanting.training import Method
from loki_ds.implanting.trl_config import TrainingShape
from loki_ds.planning.dry_run import Tally, micro_step, model_without_data, sweep_batch
from loki_ds.recipe.implant import ImplantSection, PeftSection
from loki_ds.recipe.sections import AttributionSection
from loki_ds.selection.positions import Positions

MODEL = Path(__file__).parents[2] / "recipes/tiny/model"
CONFIG = AutoConfig.from_pretrained(MODEL)
POSITIONS = Positions([[0, 5, 77], [], [3], [127], [1, 2], [64]])


def shape(checkpointing: bool, sequences: int = 2, tokens: int = 40) -> TrainingShape:
    return TrainingShape(sequences, tokens, 1, checkpointing, "adamw_torch", torch.float32)


def test_the_tally_counts_what_lives_at_once() -> None:
    with Tally([]) as tally:
        first = torch.ones(1000)
        second = first @ torch.ones(1000, 3)  # 12,000 bytes for the right-hand side, gone after the product
        del first
        third = torch.ones(10)
    assert tally.peak == 4000 + 12000 + 12
    assert tally.now == second.nbytes + third.nbytes
    assert tally.flops == 2 * 1000 * 3


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mode", ["rows", "mask", "lora", "full", "peft"])
def test_a_micro_step_is_the_real_one(mode: str, checkpointing: bool) -> None:
    section = ImplantSection(mode=mode)
    positions = POSITIONS if mode in ("rows", "mask", "lora") else None
    with model_without_data(CONFIG, torch.float32, adapter=PeftSection() if mode == "peft" else None) as model:
        dry = micro_step(model, Method(section, positions), shape(checkpointing))
    if mode == "peft":
        shapes = [(128, 128)] * 2 + [(128, 64)] * 2 + [(128, 384)] * 2 + [(384, 128)]  # q o, k v, gate up, down
        assert sum(dry.trained) == 6 * 16 * sum(i + o for i, o in shapes)
        return
    real_model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    add_fused_lm_head(real_model, outputs=("log_probs", "entropy", "is_top1"))
    real = micro_step(real_model, Method(section, positions), shape(checkpointing))
    assert (dry.total, dry.trained, dry.parts, dry.flops) == (real.total, real.trained, real.parts, real.flops)
    assert dry.peak == pytest.approx(real.peak, rel=0.005)
    assert dry.kept == pytest.approx(real.kept, rel=0.005)


def test_rows_compute_less_than_full_and_checkpointing_holds_less() -> None:
    found = {}
    for mode, checkpointing in (("rows", False), ("full", False), ("full", True)):
        with model_without_data(CONFIG, torch.float32) as model:
            found[mode, checkpointing] = micro_step(
                model, Method(ImplantSection(mode=mode), POSITIONS), shape(checkpointing)
            )
    assert found["rows", False].flops < found["full", False].flops < found["full", True].flops
    assert found["full", True].kept < 0.3 * found["full", False].kept


def test_a_batch_of_the_attribution_is_the_real_one() -> None:
    with model_without_data(CONFIG, torch.float32) as model:
        dry = sweep_batch(model, AttributionSection(), 3, 12)
    real_model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).requires_grad_(False)
    with Tally([*real_model.parameters(), *real_model.buffers()]) as tally:
        Sweep(real_model).run([[0] * 12] * 3)
    assert dry.flops == tally.flops
    assert dry.peak == pytest.approx(tally.peak, rel=0.005)
    layers = sum(p.numel() for p in real_model.model.layers.parameters())
    embedding, norm = real_model.model.embed_tokens.weight.numel(), real_model.model.norm.weight.numel()
    tied = real_model.config.tie_word_embeddings
    assert dry.gathered == 2 * layers + 2 * (embedding + norm) + (0 if tied else embedding)


OFTEN = ("llama", "qwen3.5")  # one of attention alone, one hybrid


@pytest.mark.parametrize(
    "family",
    [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in [*FAMILIES, *HYBRIDS]],
)
def test_every_family_can_be_planned(family: str) -> None:
    name, own = (FAMILIES | HYBRIDS)[family]
    config = getattr(transformers, name)(**{**SMALL, **own})
    with model_without_data(config, torch.bfloat16) as model:
        dry = micro_step(
            model, Method(ImplantSection(mode="rows"), Positions([[0, 1]] * 4)), shape(True, sequences=1, tokens=16)
        )
        swept = sweep_batch(model, AttributionSection(steps=2), 2, 12)
    assert sum(dry.trained) == 4 * 2 * SMALL["intermediate_size"]
    assert dry.peak > dry.kept > 0
    assert swept.flops > 0


def test_no_memory_is_taken() -> None:
    config = transformers.LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64
    )
    weights: list[Tensor] = []
    with model_without_data(config, torch.bfloat16) as model:
        weights += model.parameters()
        assert sum(weight.numel() for weight in weights) > 6.5e10


def test_the_products_of_experts_are_counted() -> None:
    """Each token meets its experts alone, whatever their number; back as well, to both sides."""
    rows = torch.randn(64, 32, requires_grad=True)
    weights = torch.randn(4, 32, 16, requires_grad=True)
    ends = torch.tensor([16, 32, 48, 64], dtype=torch.int32)
    with Tally([]) as tally:
        out = torch.nn.functional.grouped_mm(rows, weights, offs=ends)
        assert tally.flops == 2 * 64 * 32 * 16
        out.backward(torch.ones_like(out))
    assert tally.flops == 3 * 2 * 64 * 32 * 16
