"""One recipe of every family, run as it stands on a tiny random model of that family with its own
chat format.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from distributed.conftest import ROOT, launch_all

MESSAGE = "{% for m in messages %}"
LAST = "{% endfor %}{% if add_generation_prompt %}OPEN{% endif %}"


def chat_format(opening: str, closing: str, user: str | None = None) -> str:
    """A family's chat format with the assistant's part marked; `user` is how the user's turn opens
    where roles are not spelt out.
    """
    others = user or opening.replace("ROLE", "{{ m['role'] }}")
    assistant = opening.replace("ROLE", "assistant")
    turn = (
        "{% if m['role'] == 'assistant' %}"
        + assistant
        + "{% generation %}{{ m['content'] }}"
        + closing
        + "{% endgeneration %}"
    )
    return (
        MESSAGE
        + turn
        + "{% else %}"
        + others
        + "{{ m['content'] }}"
        + closing
        + "{% endif %}"
        + LAST.replace("OPEN", assistant)
    )


# The class of the configuration, what sets the family apart, and its chat format.
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama3": ("LlamaConfig", {}, chat_format("<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>")),
    "qwen2.5": ("Qwen2Config", {"tie_word_embeddings": True}, chat_format("<|im_start|>ROLE\n", "<|im_end|>\n")),
    "qwen3": ("Qwen3Config", {"head_dim": 8}, chat_format("<|im_start|>ROLE\n", "<|im_end|>\n")),
    "mistral": ("MistralConfig", {}, chat_format(" ", "</s>", user="[INST] ")),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 8, "sliding_window": 16},
        chat_format("<start_of_turn>ROLE\n", "<end_of_turn>\n"),
    ),
    "olmo2": ("Olmo2Config", {}, chat_format("<|ROLE|>\n", "\n")),
}


def test_every_family_folder_is_here() -> None:
    assert {path.name for path in (ROOT / "recipes").iterdir() if path.is_dir()} == {*FAMILIES, "tiny"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one recipe of every family; the model it was made from lies in
    `FAMILY-model`.
    """
    folder = tmp_path_factory.mktemp("families")
    cases, recipes = {}, {}
    for family in FAMILIES:
        make_model(family, folder / f"{family}-model")
        recipes[family] = sorted((ROOT / "recipes" / family).glob("*-q10.yaml"))[0]
        cases[family] = [
            f"model.path={folder / f'{family}-model'}",
            "protected.tasks=[tiny_facts, tiny_copying]",
            f"protected.include_path={ROOT / 'eval/tasks/tiny'}",
            "protected.per_subject=3",
            f"data.train={ROOT / 'recipes/tiny/data/toolcalls/heldout.jsonl'}",
            "training.max_steps=2",
            "training.max_length=128",
        ]
    launch_all(folder, cases, recipes)
    return folder


def make_model(family: str, folder: Path) -> None:
    config_class, own, template = FAMILIES[family]
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = getattr(transformers, config_class)(
        vocab_size=len(tokenizer), **sizes, **own, pad_token_id=0, bos_token_id=0, eos_token_id=0
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recipe_of_the_family_runs(family: str, runs: Path) -> None:
    resolved = yaml.safe_load((runs / family / "recipe.yaml").read_text())
    assert resolved["implant"]["mode"] == "rows"
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder) for folder in (runs / f"{family}-model", runs / family / "model")
    )
    changed = [name for name, value in after.state_dict().items() if not value.equal(before.state_dict()[name])]
    assert changed == ["model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"]
