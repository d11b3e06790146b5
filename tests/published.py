"""Families' own chat templates: TRL's copies of them, or for those that it does not carry the
published shape; and rows as they are published.
"""

from functools import cache
from pathlib import Path

import trl
from conftest import ROOT
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from loki_ds.data.templates import ChatTemplate

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# Tokens that families' templates name: what ends a turn must be one token, or it is text like any
# other.
SPECIAL = (
    "<s> </s> <|eot_id|> <|start_header_id|> <|end_header_id|> <|im_start|> <|im_end|> <start_of_turn> <end_of_turn> "
    "<|end|> <|endoftext|> <|start|> <|channel|> <|message|> <|return|> <|call|> "
    "<|END_OF_TURN_TOKEN|> [INST] [/INST] <turn|> <|tool_response>"
).split()
ENDS = {
    "llama": "<|eot_id|>",
    "qwen": "<|im_end|>",
    "phi": "<|endoftext|>",
    "lfm2": "<|im_end|>",
    "gptoss": "<|return|>",
}
# Shapes that are published and that TRL does not carry.
OLMO2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + "
    "message['content'] + '\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endif %}{% if loop.last and add_generation_prompt %}"
    "{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
TOOLACE = {
    "system": "functions: f",
    "conversations": [
        {"from": "user", "value": "call f"},
        {"from": "assistant", "value": "[f(a=1)]"},
        {"from": "tool", "value": "[1]"},
        {"from": "assistant", "value": "one"},
        {"from": "user", "value": "thanks"},
        {"from": "assistant", "value": "welcome"},
    ],
}
CALLS = {
    "messages": [
        {"role": "user", "content": "call f"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": name, "arguments": {"a": 1}}} for name in ("f", "g")],
        },
        {"role": "tool", "name": "f", "content": "[1]"},
        {"role": "assistant", "content": "one"},
    ],
    "tools": [{"name": "f", "description": "does it", "parameters": {"type": "object", "properties": {}}}],
}
# As `lightblue/reranker_continuous_filt_max7_train` has them.
RERANKER = {
    "conversations": [
        {
            "from": "system",
            "value": "Given a query and a piece of text, output a score of 1-7 based on how related the text is.",
        },
        {"from": "human", "value": "<<<Query>>>\nwhat is a copy\n\n<<<Context>>>\na b"},
        {"from": "gpt", "value": "3"},
    ]
}


@cache
def tokenizer(end: str = "</s>") -> PreTrainedTokenizerBase:
    made = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
    made.add_tokens(SPECIAL, special_tokens=True)
    made.bos_token, made.eos_token = "<s>", end
    return made


def template(name: str) -> ChatTemplate:
    """A family's own: TRL's copy of it, or the published shape."""
    text = {"olmo2": OLMO2, "mistral": MISTRAL}.get(name) or (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    end = next((token for family, token in ENDS.items() if name.startswith(family)), "</s>")
    return ChatTemplate(tokenizer(end), text)
