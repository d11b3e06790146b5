"""Long sequences and wide groups: packed to thousands of tokens, ZeRO++'s second partition."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, in_mode
from transformers import AutoModelForCausalLM

from distributed.conftest import launch

SHORT = [
    "selection.strategy=random",
    "training.max_steps=3",
    "training.optim=sgd",
    "training.learning_rate=0.1",
    "--until",
    "implant",
]


@pytest.mark.slow
def test_eight_thousand_tokens_packed(tmp_path: Path) -> None:
    settings = [
        "training.max_length=8192",
        "training.packing=true",
        "training.per_device_train_batch_size=1",
        *in_mode("rows"),
    ]
    done = launch(*SHORT, *settings, "training.logging_steps=1", f"run={tmp_path / 'run'}")
    assert done.status == 0, done.output
    log = json.loads((tmp_path / "run/training_log.json").read_text())
    assert log[0]["num_tokens"] > 2 * 8000
    assert json.loads((tmp_path / "run/verify.json").read_text())["identical_outside_rows"] is True


def test_packed_examples_do_not_see_one_another() -> None:
    """What packing relies on, in transformers' sdpa: positions that start again at 0 start another
    sequence.
    """
    model = AutoModelForCausalLM.from_pretrained(ROOT / "recipes/tiny/model", dtype=torch.float64)
    first, second = torch.arange(5, 15)[None], torch.arange(20, 33)[None]
    positions = torch.cat([torch.arange(10), torch.arange(13)])[None]
    with torch.no_grad():
        packed = model(torch.cat([first, second], dim=1), position_ids=positions).logits
        alone = torch.cat([model(first).logits, model(second).logits], dim=1)
    assert torch.allclose(packed, alone, atol=1e-9)


def test_a_second_partition_keeps_every_other_byte(tmp_path: Path) -> None:
    config = json.loads((ROOT / "launch/zero3.json").read_text())
    config["zero_optimization"]["zero_hpz_partition_size"] = 2
    (tmp_path / "hpz.json").write_text(json.dumps(config))
    done = launch(*SHORT, "implant.mode=mask", f"deepspeed={tmp_path / 'hpz.json'}", f"run={tmp_path / 'run'}")
    assert done.status == 0, done.output
    assert json.loads((tmp_path / "run/verify.json").read_text())["identical_outside_rows"] is True
