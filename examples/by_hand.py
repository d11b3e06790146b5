"""LoKI by hand, on the tiny model: no recipe, no run folder, no stages, no DeepSpeed.

    python examples/by_hand.py [FOLDER]      # half a minute on a CPU; from the project's folder

What `launch/implant.py` does in the same order, without sharding, resuming, exports and reports.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import loki_ds
from loki_ds.export.checkpoint import apply_to_checkpoint, read_rows
from loki_ds.export.implant_file import Implant, LayerRows
from loki_ds.export.verification import verify
from loki_ds.implanting.rows import train_row_deltas
from loki_ds.model.anatomy import decoder_layers
from loki_ds.model.expert_rows import with_rows
from loki_ds.model.ffn import site_of

BASE, DATA = Path("recipes/tiny/model"), Path("recipes/tiny/data")
STEPS, BATCH, RATE = 60, 16, 5e-3
out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/by_hand")
out.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
tokenizer: Any = AutoTokenizer.from_pretrained(BASE)
model: Any = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval().requires_grad_(False)

# 1. Attribute: what does each row of each down-projection carry of what the model knows?
prompts = [json.loads(line)["prompt"] for line in (DATA / "protected.jsonl").open()][::5]
scores = loki_ds.attribute(model, [tokenizer(prompt)["input_ids"] for prompt in prompts])

# 2. Select: the 30% of each layer's rows that carry least.
positions = loki_ds.select(scores, quota=30)
positions.save(out / "positions.json")

# 3. Implant: train a delta on those rows alone, on the tokens of the answers.
chats = [json.loads(line)["messages"] for line in (DATA / "toolcalls/train.jsonl").open()]
train_row_deltas(model, positions, torch.float32, torch.device("cpu"), low_rank=None, seed=0)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0)
for step in range(STEPS):
    batch = tokenizer.apply_chat_template(
        [chats[i % len(chats)] for i in range(step * BATCH, (step + 1) * BATCH)],
        return_dict=True,
        return_tensors="pt",
        padding=True,
        return_assistant_tokens_mask=True,
    )
    learned = torch.as_tensor(batch.pop("assistant_masks")).bool()
    loss = model(**batch, labels=batch["input_ids"].masked_fill(~learned, -100)).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 20 == 0 or step == STEPS - 1:
        print(f"step {step}: loss {loss.item():.3f}")

# 4. What leaves: the rows before and after, put into a copy of the base.
layers = {}
for i, before in read_rows(BASE, positions).items():
    trained = site_of(decoder_layers(model)[i]).downs[0].module
    delta = trained.delta.detach()
    layers[i] = LayerRows(torch.tensor(positions.rows[i]), before, with_rows(before, torch.arange(len(before)), delta))
implant = Implant(len(positions.rows), layers)
implant.save(out / "implant.safetensors")
apply_to_checkpoint(BASE, implant, out / "model")

# 5. Verify: every other byte is the base's.
print(json.dumps(verify(BASE, out / "model", positions).as_json(), indent=1))
