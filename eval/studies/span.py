"""What the protected span holds: of the protected inputs, of abilities that were not protected, and
of the new task; in the tiny world.

    python eval/studies/span.py        # seconds; writes docs/span.png and eval/reports/span.md

For every layer and energy: `U` from facts, arithmetic and copying; then the share of each group's
own input energy that lies inside `U`. A new task that lies wholly inside cannot be learnt quietly;
an ability that lies outside is not protected by the span.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from loki_ds.attribution.batches import batches
from loki_ds.quiet.moments import collect_moments
from loki_ds.quiet.subspace import SecondMoment, protected_subspace
from loki_ds.zero.model import Gatherer

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import ROOT, paragraph, table, write

TINY = ROOT / "recipes/tiny"
ENERGIES = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)
PROTECTED, OTHERS = ("facts", "arithmetic", "copying"), ("reversing", "sequences", "picking")


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY / "model", dtype=torch.float32).eval().requires_grad_(False)
    tokenizer: Any = AutoTokenizer.from_pretrained(TINY / "model")
    prompts = [json.loads(line) for line in (TINY / "data/protected.jsonl").read_text().splitlines()]
    chats = [json.loads(line)["messages"] for line in (TINY / "data/toolcalls/heldout.jsonl").read_text().splitlines()]
    groups = {
        "protected": [tokenizer(p["prompt"])["input_ids"] for p in prompts if p["subject"] in PROTECTED],
        "abilities held out": [tokenizer(p["prompt"])["input_ids"] for p in prompts if p["subject"] in OTHERS],
        "new task": [tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"] for chat in chats],
    }
    moments = {
        name: collect_moments(model, Gatherer(), tokens, batches(tokens, 30), None) for name, tokens in groups.items()
    }
    shares = {
        name: [
            [inside(own, kept, energy) for own, kept in zip(found, moments["protected"], strict=True)]
            for energy in ENERGIES
        ]
        for name, found in moments.items()
    }
    rooms = [[protected_subspace(kept, energy).room for kept in moments["protected"]] for energy in ENERGIES]
    draw(shares, rooms, ROOT / "docs/span.png")
    write_report(shares, rooms)


def inside(own: SecondMoment, protected: SecondMoment, energy: float) -> float:
    """Share of a group's input energy within the protected span."""
    basis: Tensor = protected_subspace(protected, energy).basis.double()
    return own.felt(basis.T) / own.trace


def draw(shares: dict[str, list[list[float]]], rooms: list[list[float]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    places = range(len(ENERGIES))
    for name, by_energy in shares.items():
        means = [100 * sum(layers) / len(layers) for layers in by_energy]
        axes.plot(places, means, marker="o", label=name)
    axes.plot(
        places,
        [100 * sum(layers) / len(layers) for layers in rooms],
        color="gray",
        linestyle=":",
        marker="s",
        label="room: directions left",
    )
    axes.set(
        xticks=places,
        xticklabels=[f"{energy:g}" for energy in ENERGIES],
        xlabel="energy of the protected inputs in the span",
        ylabel="percent, mean of layers",
        ylim=(0, 102),
    )
    axes.set_title("share of each group's FFN inputs inside the protected span")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def write_report(shares: dict[str, list[list[float]]], rooms: list[list[float]]) -> None:
    rows = [
        [f"{energy:g}", *(spread(by_energy[i]) for by_energy in shares.values()), spread(rooms[i])]
        for i, energy in enumerate(ENERGIES)
    ]
    about = (
        "`python eval/studies/span.py`, tiny world: span from facts, arithmetic and copying; share of each group's own "
        "FFN-input energy inside it, mean over layers (least to most in brackets); room: directions left to the "
        "implant."
    )
    headings = ["energy", *shares, "room"]
    write("span", "What the protected span holds", paragraph(about), table(headings, rows, words=len(headings)))


def spread(layers: list[float]) -> str:
    return f"{100 * sum(layers) / len(layers):.0f}% ({100 * min(layers):.0f} to {100 * max(layers):.0f})"


if __name__ == "__main__":
    main()
