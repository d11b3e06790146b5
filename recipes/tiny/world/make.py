"""Remake the tiny world: its data files, its tokenizer and its pre-trained model (`make
tiny-world`, minutes on two cores).

Usage: python recipes/tiny/world/make.py [--out recipes/tiny] [--steps N] [--seed N]

Writes into --out: data/protected.jsonl            general-knowledge prompts for attribution
    {"subject", "prompt"} data/replay.jsonl               the same prompts as chats with their
    answers, for the replay baseline   {"messages"} data/abilities/NAME.jsonl       the documents
    lm-eval scores                {"prompt", "answer"} data/toolcalls/{train,heldout}.jsonl   the
    new task                         {"messages", "category"} data/labelling/{train,heldout}.jsonl
    another one, for studies             {"messages"} model/                          Qwen2
    architecture, float32 safetensors, tokenizer, chat template
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import abilities
import labelling
import toolcalls
import torch
from datasets import Dataset
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    DataCollatorForSeq2Seq,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% generation %} "
    "{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|{{ message['role'] }}|> {{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PER_ABILITY = 360  # items of each ability, or all there are; five in six are evaluated, one in six is protected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_data(args.out / "data", args.seed)
    tokenizer = build_tokenizer()
    model = pretrain(tokenizer, args.steps, args.seed)
    model.save_pretrained(args.out / "model")
    tokenizer.save_pretrained(args.out / "model")


def write_data(folder: Path, seed: int) -> None:
    """Draw the evaluated, protected, training and held-out items; no two of them share a prompt."""
    protected, replayed = [], []
    for name, draw in abilities.abilities(seed).items():
        items = abilities.distinct(draw, PER_ABILITY, Random(f"{name}-{seed}"))
        evaluated, kept = items[: len(items) * 5 // 6], items[len(items) * 5 // 6 :]
        write_jsonl(folder / "abilities" / f"{name}.jsonl", (item._asdict() for item in evaluated))
        protected += [{"subject": name, "prompt": item.prompt} for item in kept]
        replayed += [
            [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.answer}] for item in kept
        ]
    write_jsonl(folder / "protected.jsonl", protected)
    write_jsonl(folder / "replay.jsonl", ({"messages": messages} for messages in replayed))
    for task in (toolcalls, labelling):
        name = task.__name__
        chats = distinct_chats(task.draw, 3300, Random(f"{name}-{seed}"))
        write_jsonl(folder / name / "train.jsonl", chats[300:])
        write_jsonl(folder / name / "heldout.jsonl", chats[:300])


def distinct_chats(draw: Callable[[Random], dict[str, Any]], n: int, rng: Random) -> list[dict[str, Any]]:
    """`n` chats with different requests."""
    found: dict[str, dict[str, Any]] = {}
    while len(found) < n:
        chat = draw(rng)
        found.setdefault(chat["messages"][0]["content"], chat)
    return list(found.values())


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def build_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's byte-level tokenizer, its merges learned from the world's words until each one is a
    single token.
    """
    names: dict[str, Any] = {"pad_token": "<|pad|>", "eos_token": "<|end|>", "unk_token": None, "model_max_length": 256}
    core = Qwen2Tokenizer(**names).backend_tokenizer
    words = [form for word in abilities.WORDS for form in (word, f" {word}")]
    trainer = BpeTrainer(vocab_size=10_000, min_frequency=1, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    core.train_from_iterator(words, trainer)
    learned = json.loads(core.to_str())["model"]
    merges: Any = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=learned["vocab"], merges=merges, **names)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def pretrain(tokenizer: Qwen2Tokenizer, steps: int, seed: int) -> Qwen2ForCausalLM:
    """Teach all abilities at once, loss on the answers only; one document in four is put as a
    chat.
    """
    set_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    batch = 192
    training = TrainingArguments(
        output_dir="/tmp/tiny-world",
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.01,
        adam_beta2=0.98,
        logging_steps=100,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
    )
    rows = Dataset.from_list(documents(tokenizer, steps * batch, seed))
    model = Qwen2ForCausalLM(config)
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    Trainer(model, training, data_collator=collator, train_dataset=rows).train()
    return model


def documents(tokenizer: Qwen2Tokenizer, n: int, seed: int) -> list[dict[str, list[int]]]:
    """`n` tokenized documents with the answer, its closing word and the end token as labels."""
    rng, draws = Random(f"pretraining-{seed}"), list(abilities.abilities(seed).values())
    return [document(tokenizer, rng.choice(draws)(rng), as_chat=rng.random() < 0.25) for _ in range(n)]


def document(tokenizer: Qwen2Tokenizer, item: abilities.Item, as_chat: bool) -> dict[str, list[int]]:
    prompt = f"<|user|> {item.prompt}<|assistant|>" if as_chat else item.prompt
    shown, learned = tokenizer(prompt)["input_ids"], tokenizer(f" {item.answer}<|end|>")["input_ids"]
    return {"input_ids": shown + learned, "labels": [-100] * len(shown) + learned}


if __name__ == "__main__":
    main()
