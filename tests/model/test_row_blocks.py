"""Where rows may train, on the loaded model: which weights, and which rows are chosen together."""

import pytest
from conftest import FAMILIES, HYBRIDS, build
from mixtures import MIXTURES, OTHERS, mixture
from torch.nn import Linear, Module

from loki_ds.model.row_blocks import blocks_of, named_blocks, row_blocks
from loki_ds.refusal import Refusal
from loki_ds.selection.blocks import Block
from loki_ds.selection.select import select_random


def sizes(model: Module, where: str) -> dict[str, tuple[int, int]]:
    return {block.name: (block.rows, block.width) for block in blocks_of(row_blocks(model, where)) if block.layer == 1}


def test_each_place_of_a_dense_layer() -> None:
    model = build("llama")
    attention = {"1.self_attn.q_proj": (32, 32), "1.self_attn.o_proj": (32, 32)}
    attention |= {"1.self_attn.k_proj": (16, 32), "1.self_attn.v_proj": (16, 32)}
    neurons = {"1.mlp.gate_proj": (48, 32), "1.mlp.up_proj": (48, 32)}
    assert sizes(model, "down") == {"1.down": (32, 48)}
    assert sizes(model, "gate_up") == neurons
    assert sizes(model, "attention") == attention
    assert sizes(model, "all") == {"1.down": (32, 48), **neurons, **attention}


def test_all_is_every_linear_layer() -> None:
    for family in FAMILIES:
        model = build(family)
        held = {weight.module for found in row_blocks(model, "all") for weight in found.weights}
        assert held == {module for module in model.model.layers.modules() if type(module) is Linear}


def test_experts_and_what_all_tokens_share() -> None:
    model = mixture("qwen2 moe")  # four experts of 16 neurons, and one of 24 for all tokens
    assert sizes(model, "gate_up") == {
        "1.mlp.experts.gate_up_proj": (32, 128),
        "1.mlp.shared_expert.gate_proj": (24, 32),
        "1.mlp.shared_expert.up_proj": (24, 32),
    }


def test_linear_attention_is_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "qwen3.5", HYBRIDS["qwen3.5"])
    assert {"1.linear_attn.out_proj", "1.linear_attn.in_proj_qkv"} <= sizes(build("qwen3.5"), "attention").keys()


@pytest.mark.parametrize("name", [*MIXTURES, *OTHERS])
def test_a_neuron_is_the_same_row_of_all_that_its_ffn_reads_by(name: str) -> None:
    blocks = blocks_of(row_blocks(mixture(name), "gate_up"))
    positions = select_random(blocks, 20, seed=0)
    for block, rows in zip(blocks, positions.rows, strict=True):
        neurons = sorted({row // 2 if block.interleaved else row % block.choices for row in rows})
        assert block.rows_of(neurons) == rows
        assert len(rows) == block.parts * len(neurons) == block.parts * int(0.2 * block.choices)
        partners = [other for other in blocks if other.choice == block.choice]
        assert all(other.rows_of(neurons) == positions.by_name[other.name] for other in partners)


@pytest.mark.parametrize(("interleaved", "rows"), [(False, [1, 3, 9, 11]), (True, [2, 3, 6, 7])])
def test_gate_and_up_in_one_weight(interleaved: bool, rows: list[int]) -> None:
    assert Block("0.mlp.gate_up_proj", 16, 4, "", parts=2, interleaved=interleaved).rows_of([1, 3]) == rows


def test_names_of_another_model_are_refused() -> None:
    with pytest.raises(Refusal, match=r"LlamaForCausalLM has no rows '4.mlp.gate_proj'"):
        named_blocks(build("llama"), ["3.mlp.gate_proj", "4.mlp.gate_proj"])


def test_what_an_ffn_reads_by_must_be_known() -> None:
    model = build("llama")
    model.model.layers[2].mlp.odd_proj = Linear(32, 7)
    with pytest.raises(Refusal, match=r"layer 2 has an FFN that reads by unknown parts \(.*mlp.odd_proj"):
        row_blocks(model, "gate_up")
