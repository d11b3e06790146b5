"""The pull to the base: what it acts on in each mode, and where it leads.

(Under ZeRO, and from a checkpoint on: tests/distributed.)
"""

import pytest
import torch
from conftest import build
from peft import get_peft_model
from torch import Tensor
from torch.nn import Module

from loki_ds.implant_section import ImplantSection
from loki_ds.implanting.baselines import peft_config
from loki_ds.implanting.pull import pull_through_steps, pulled
from loki_ds.implanting.training import Method, prepare
from loki_ds.positions import Positions
from loki_ds.zero.optimizer import Shard

POSITIONS = Positions([[1, 5], [], [0], [31]])
SECTIONS = {
    **{mode: ImplantSection(mode=mode, pull=4.0) for mode in ("mask", "rows", "lora", "full")},
    **{
        f"peft {method}": ImplantSection(mode="peft", peft={"method": method, "rank": 2})
        for method in ("lora", "dora", "pissa")
    },
}


def ready(section: ImplantSection) -> Module:
    if section.kind.leaves == "adapter":
        return get_peft_model(build("llama", torch.float32), peft_config(section.peft))  # PiSSA knows no float64
    model = build("llama", torch.float64)
    prepare(model, Method(section, POSITIONS), seed=0)
    return model


def logits(model: Module) -> Tensor:
    return model(torch.arange(12).view(2, 6)).logits


def moved(section: ImplantSection, model: Module, rate: float = 0.05) -> torch.optim.SGD:
    """Move everything that trains; the steps that follow do nothing but pull."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    starts = [(Shard(one), Shard(one).read().clone()) for one in pulled(model, section)]
    stepper = torch.optim.SGD(trained, lr=rate)
    with torch.no_grad():
        for parameter in trained:
            parameter += 0.05 * torch.randn_like(parameter)
            parameter.grad = torch.zeros_like(parameter)
    pull_through_steps(stepper, starts, strength=4.0)
    return stepper


@pytest.mark.parametrize("name", SECTIONS)
def test_pulled_long_enough_every_mode_is_the_base_again(name: str) -> None:
    section = SECTIONS[name]
    model = ready(section)
    with torch.no_grad():
        base = logits(model)
        stepper = moved(section, model)
        assert not torch.allclose(logits(model), base, atol=1e-3)
        for _ in range(200):
            stepper.step()
        assert torch.allclose(logits(model), base, atol=1e-5 if section.kind.leaves == "adapter" else 1e-12)


@pytest.mark.parametrize("name", ["rows", "lora"])
def test_a_delta_loses_the_stated_part_each_step(name: str) -> None:
    """Also a product of two factors: 0.2 of it a step, not 0.36."""
    model = ready(SECTIONS[name])
    module = model.model.layers[0].mlp.down_proj
    with torch.no_grad():
        for part in (module.delta,) if name == "rows" else (module.delta_a,):
            part.normal_()
    before = module.whole_delta().detach().clone()
    shards = [Shard(one) for one in pulled(model, SECTIONS[name])]
    stepper = torch.optim.SGD([shard.parameter for shard in shards], lr=0.05)
    pull_through_steps(stepper, [(shard, torch.zeros_like(shard.read())) for shard in shards], strength=4.0)
    stepper.step()
    assert torch.allclose(module.whole_delta(), 0.8 * before, rtol=1e-12)


def test_in_full_precision_it_leads_back_to_a_bfloat16_base_bit_for_bit() -> None:
    """The optimizer's float32 shards begin at the base's bfloat16 values."""
    base = [one.detach().clone() for one in build("llama", torch.bfloat16).parameters()]
    model = build("llama", torch.bfloat16).float().requires_grad_(True)
    stepper = moved(SECTIONS["full"], model)
    for _ in range(200):
        stepper.step()
    for now, then in zip(model.parameters(), base, strict=True):
        assert torch.equal(now.detach().to(torch.bfloat16).view(torch.int16), then.view(torch.int16))
