"""One recipe of every family, run as it stands on a tiny random model of that family with the
family's own chat template and its newest, on rows as ToolACE and the reranker's set have them.
"""

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from datasets import Dataset
from peft import PeftModel
from published import CALLS, RERANKER, TOOLACE, template
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from distributed.conftest import ROOT, asked_for, launch_all
from loki_ds.data.rendering import NOT_LEARNED
from loki_ds.disk.files import weights_digest
from loki_ds.export.checkpoint import apply_to_checkpoint, revert_in_checkpoint
from loki_ds.export.implant_file import Implant
from loki_ds.model.classes import model_class
from loki_ds.model.template_date import one_date

LLAMA, QWEN3 = ("LlamaConfig", {}), ("Qwen3Config", {"head_dim": 8})
GEMMA3 = ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 16})
# Wrappers of text and pictures, as the larger models are published.
PICTURES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
GEMMA3_4B = {
    "text_config": GEMMA3[1],
    "vision_config": PICTURES,
    "mm_tokens_per_image": 4,
    "image_token_index": 3,
}
MISTRAL3 = {
    "text_config": {"model_type": "mistral", "head_dim": 8},
    "vision_config": {
        "model_type": "pixtral",
        **PICTURES,
    },
    "image_token_index": 3,
}
QWEN3VL = {
    "text_config": {"head_dim": 8, "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
    "vision_config": {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 4,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    },
    **{f"{name}_token_id": i for i, name in enumerate(("image", "video", "vision_start", "vision_end"), start=3)},
}
# As the 12B and the 31B: two sizes of heads, keys that are values, layers that share nothing.
GEMMA4 = {
    "text_config": {
        "head_dim": 8,
        "global_head_dim": 16,
        "num_global_key_value_heads": 2,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "patch_size": 4,
        "position_embedding_size": 64,
    },
    **{
        f"{name}_token_{'index' if name == 'eoa' else 'id'}": place
        for place, name in enumerate(("image", "video", "audio", "boi", "eoi", "boa", "eoa"), start=3)
    },
}
# As the 26B-A4B: beside the FFN experts, each with a norm of its own.
GEMMA4_MOE = {
    **GEMMA4,
    "text_config": {
        **GEMMA4["text_config"],
        **{"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    },
}
QWEN25VL = {
    "text_config": {"rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
    "vision_config": {
        **{"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32},
        **{"patch_size": 4, "window_size": 16, "fullatt_block_indexes": [0]},
    },
    **{f"{name}_token_id": i for i, name in enumerate(("image", "video", "vision_start", "vision_end"), start=3)},
}
# InternVL 3 speaks by Qwen 2.5, LLaVA 1.6 by Mistral.
INTERNVL = {
    "text_config": {"model_type": "qwen2"},
    "vision_config": {**PICTURES, "image_size": [28, 28], "patch_size": [14, 14]},
    "image_token_id": 3,
}
LLAVA = {
    "text_config": {"model_type": "mistral", "head_dim": 8},
    "vision_config": {"model_type": "clip_vision_model", **PICTURES, "projection_dim": 16},
    **{"image_token_index": 3, "image_grid_pinpoints": [[28, 28]]},
}
QWEN35 = {
    "text_config": {
        "head_dim": 8,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "tie_word_embeddings": True,
    },
    "vision_config": {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 4,
        "num_position_embeddings": 16,
    },
    "tie_word_embeddings": True,
}
ROUTED = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
QWEN36_MOE = {
    **QWEN35,
    "text_config": {**QWEN35["text_config"], **ROUTED, "shared_expert_intermediate_size": 16},
}
GPT_OSS = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 16}
# The recipes' folder, the class of the configuration with what sets the family apart, and the
# template.
FAMILIES: dict[str, tuple[str, tuple[str, dict[str, Any]], str]] = {
    "llama 3.1": ("llama3", LLAMA, "llama3_1"),
    "llama 3.2": ("llama3", LLAMA, "llama3_2"),
    "qwen 2.5": ("qwen2.5", ("Qwen2Config", {"tie_word_embeddings": True}), "qwen2_5"),
    "qwen 3": ("qwen3", QWEN3, "qwen3"),
    "qwen 3.8": ("qwen3", QWEN3, "qwen3_8"),
    "qwen 3.5": ("qwen3.5", ("Qwen3_5Config", QWEN35), "qwen3_6"),
    "qwen 3 MoE": ("qwen3", ("Qwen3MoeConfig", {**ROUTED, "head_dim": 8}), "qwen3_instruct_2507"),
    "qwen 3.6 MoE": ("qwen3.5", ("Qwen3_5MoeConfig", QWEN36_MOE), "qwen3_6"),
    "gpt-oss": ("gpt-oss", ("GptOssConfig", GPT_OSS), "gptoss"),
    "mistral": ("mistral", ("MistralConfig", {}), "mistral"),
    "gemma 2": ("gemma3", ("Gemma2Config", {"head_dim": 8, "sliding_window": 16}), "gemma3"),  # no sdpa in transformers
    "qwen 3 VL": ("qwen3", ("Qwen3VLConfig", QWEN3VL), "qwen3_vl"),
    "mistral 3": ("mistral", ("Mistral3Config", MISTRAL3), "mistral"),
    "gemma 3": ("gemma3", GEMMA3, "gemma3"),
    "gemma 3 4B": ("gemma3", ("Gemma3Config", GEMMA3_4B), "gemma3"),
    "gemma 4": ("gemma4", ("Gemma4Config", GEMMA4), "gemma4_v5"),
    "gemma 4 26B-A4B": ("gemma4", ("Gemma4Config", GEMMA4_MOE), "gemma4_v5"),
    "qwen 2.5 VL": ("qwen2.5", ("Qwen2_5_VLConfig", QWEN25VL), "qwen2_5"),
    "internvl 3": ("qwen2.5", ("InternVLConfig", INTERNVL), "qwen2_5"),
    "llava 1.6": ("mistral", ("LlavaNextConfig", LLAVA), "mistral"),
    "olmo 2": ("olmo2", ("Olmo2Config", {}), "olmo2"),
}


# Loaded as a whole.
WRAPPED = (
    *("qwen 3 VL", "mistral 3", "gemma 3 4B", "gemma 4", "gemma 4 26B-A4B", "qwen 2.5 VL", "internvl 3", "llava 1.6"),
)
WITH_EXPERTS = ("qwen 3 MoE", "qwen 3.6 MoE", "gpt-oss", "gemma 4 26B-A4B")
RECOMMENDED = ("llama 3.1", "gpt-oss", "gemma 4", "qwen 3.5")  # whose `recommended.yaml` trains everything
# What is written under the files' names, which are not the class's.
IN_OTHER_MODES = [
    *(("qwen 3.5", "mask"), ("qwen 3.5", "lora"), ("qwen 3 VL", "mask"), ("qwen 3 VL", "lora")),
    *(("gemma 4 26B-A4B", "mask"), ("gemma 4 26B-A4B", "lora")),
]


def loaded(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """As PEFT's documentation and the model's card would."""
    return model_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder, dtype=dtype)


def test_every_family_folder_is_here() -> None:
    assert {path.name for path in (ROOT / "recipes").iterdir() if path.is_dir()} == {
        *(recipes for recipes, _, _ in FAMILIES.values()),
        "smollm2",  # a real model's: tests/test_real.py
        "tiny",
    }


# The others are what one of these is, with another template or other sizes.
OFTEN = (
    "llama 3.1",
    "qwen 3.5",
    "qwen 3 MoE",
    "gpt-oss",
    "qwen 3 VL",
    "gemma 3",
    "gemma 4 26B-A4B",
    "mistral",
    "olmo 2",
)


def often(families: Iterable[str]) -> list[Any]:
    """Families of which those that seldom find anything are marked so."""
    return [family if family in OFTEN else pytest.param(family, marks=pytest.mark.slow) for family in families]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A finished run of one recipe of every family that is asked for; the model it was made from
    lies in `FAMILY-model`.
    """
    folder = tmp_path_factory.mktemp("families")
    for name, rows in {"toolace": [TOOLACE, CALLS], "reranker": [RERANKER]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 20))
    cases, recipes = {}, {}
    asked = asked_for(request, "family")
    for family, (recipe, _, _) in FAMILIES.items():
        if family not in asked:
            continue
        make_model(family, folder / f"{family}-model")
        recipes[family] = sorted((ROOT / "recipes" / recipe).glob("*-q10.yaml"))[0]
        cases[family] = [
            f"model.path={folder / f'{family}-model'}",
            f"protected={{prompts: {ROOT / 'recipes/tiny/data/protected.jsonl'}, per_subject: 1}}",
            f"data.train=[{{path: {folder / 'toolace.jsonl'}}}, {{path: {folder / 'reranker.jsonl'}}}]",
            "training.max_steps=2",
            "implant.fade=0.01",  # the recipes' own would take all of two steps back, which bfloat16 rounds away
            "training.max_length=2048",
        ]
    for family in filter(cases.__contains__, RECOMMENDED):
        recipes[f"{family} recommended"] = ROOT / "recipes" / FAMILIES[family][0] / "recommended.yaml"
        cases[f"{family} recommended"] = [one for one in cases[family] if not one.startswith("protected=")]
    for family, mode in ((family, mode) for family, mode in IN_OTHER_MODES if family in asked):
        recipes[f"{family} {mode}"] = recipes[family]
        cases[f"{family} {mode}"] = [*cases[family], f"implant.mode={mode}"]
    launch_all(folder, cases, recipes)
    return folder


def make_model(family: str, folder: Path) -> None:
    _, (config_class, own), name = FAMILIES[family]
    one = template(name)
    tokenizer = copy.deepcopy(one.tokenizer)
    tokenizer.chat_template = one.text
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    text = {"vocab_size": len(tokenizer), **sizes, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    settings = {**own, "text_config": {**text, **own["text_config"]}} if "text_config" in own else {**text, **own}
    config = getattr(transformers, config_class)(**settings)
    wrapped = transformers.AutoModelForImageTextToText if "text_config" in own else AutoModelForCausalLM
    wrapped.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    if family == "qwen 3.5":  # published with a head that predicts further tokens, which transformers does not load
        tensors = load_file(folder / "model.safetensors")
        tensors["mtp.layers.0.mlp.down_proj.weight"] = torch.ones(32, 64, dtype=torch.bfloat16)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("family", often(FAMILIES))
def test_a_recipe_of_the_family_runs(family: str, runs: Path) -> None:
    resolved = yaml.safe_load((runs / family / "recipe.yaml").read_text())
    assert resolved["implant"]["mode"] == "rows"
    before, after = (loaded(folder, torch.bfloat16) for folder in (runs / f"{family}-model", runs / family / "model"))
    changed = [name for name, value in after.state_dict().items() if not value.equal(before.state_dict()[name])]
    stack = "model.language_model" if family in WRAPPED else "model"
    downs = ["mlp.experts.down_proj"] if family in WITH_EXPERTS else ["mlp.down_proj.weight"]
    downs += ["mlp.shared_expert.down_proj.weight"] if family == "qwen 3.6 MoE" else []
    if family == "gemma 4 26B-A4B":
        downs = ["mlp.down_proj.weight", "experts.down_proj"]
    assert changed == [f"{stack}.layers.{i}.{down}" for i in (0, 1) for down in downs]


@pytest.mark.parametrize("family", often(RECOMMENDED))
def test_the_recommended_recipe_trains_every_weight_that_reads_text(family: str, runs: Path) -> None:
    before, after = (
        loaded(folder, torch.bfloat16) for folder in (runs / f"{family}-model", runs / f"{family} recommended/model")
    )
    changed = {name for name, value in after.state_dict().items() if not value.equal(before.state_dict()[name])}
    assert any("self_attn" in name for name in changed)
    assert any("mlp" in name for name in changed)
    assert not any("vision" in name or "visual" in name for name in changed)


@pytest.mark.parametrize(("family", "mode"), [*IN_OTHER_MODES, ("qwen 3.5", "recommended")])
def test_what_trained_goes_back_under_the_names_of_the_files(family: str, mode: str, runs: Path) -> None:
    before, after = (
        load_file(folder / "model.safetensors")
        for folder in (runs / f"{family}-model", runs / f"{family} {mode}/model")
    )
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not value.equal(before[name])}
    assert changed
    assert not any("visual" in name or "vision" in name or name.startswith("mtp") for name in changed)
    if mode != "recommended":
        assert json.loads((runs / f"{family} {mode}/verify.json").read_text())["identical_outside_rows"]
        assert all("down_proj" in name for name in changed)


@pytest.mark.parametrize("family", often(["llama 3.1", "qwen 3.5", "qwen 3 VL", *WITH_EXPERTS]))
def test_the_implant_leads_from_base_to_model_and_back_byte_for_byte(family: str, runs: Path, tmp_path: Path) -> None:
    base, model, implant = runs / f"{family}-model", runs / family / "model", runs / family / "implant.safetensors"
    apply_to_checkpoint(base, Implant.load(implant), tmp_path / "applied")
    revert_in_checkpoint(model, Implant.load(implant), tmp_path / "reverted")
    assert weights_digest(tmp_path / "applied") == weights_digest(model)
    assert weights_digest(tmp_path / "reverted") == weights_digest(base)


@pytest.mark.parametrize("family", often(["llama 3.1", "qwen 3.5", *WRAPPED, *WITH_EXPERTS]))
def test_the_adapter_loads_into_the_class_that_the_base_is_loaded_as(family: str, runs: Path) -> None:
    base, model = (loaded(folder, torch.float32) for folder in (runs / f"{family}-model", runs / family / "model"))
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(base, str(runs / family / "adapter"))(input_ids=ids).logits
        assert torch.allclose(adapted, model(input_ids=ids).logits, atol=0.01)  # the model's rows are in bfloat16


@pytest.mark.parametrize("family", often(FAMILIES))
def test_what_trained_are_the_answers_by_the_template_that_leaves_with_the_model(family: str, runs: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(runs / family / "model")
    rows = [Dataset.from_file(str(runs / family / f"examples/{place}.arrow"))[0] for place in (0, 1)]
    said = [tokenizer.decode([label for label in row["labels"] if label != NOT_LEARNED]) for row in rows]
    assert all(part in said[0] for part in ("[f(a=1)]", "one", "welcome"))
    assert "[1]" not in said[0]
    assert (
        said[1].strip().startswith(("3", "<think>\n\n</think>\n\n3", "<|start|>assistant<|channel|>final<|message|>3"))
    )
    turns = [
        {"role": "system", "content": "functions: f"},
        *({"role": one["from"], "content": one["value"]} for one in TOOLACE["conversations"]),
    ]
    with one_date():
        assert tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"] == rows[0]["input_ids"]
