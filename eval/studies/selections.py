"""What each selection of the study selects: how sensitive its rows are, where they write, how much
it shares with the others.

    python eval/studies/selections.py   # after `make study`; seconds; eval/reports/selections.md

For the rows of every positions file: the mean second moment of the gradient at their outputs, on
the protected set and on the new task, over that of all rows of the layer (1.00 is what random rows
have); the mean |KVA| likewise; and the overlap with LoKI's q30.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from loki_ds.attribution.kept import KeptScores, kept_sensitivity
from loki_ds.positions import Positions

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import ROOT, paragraph, table, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/study/methods")
    runs = parser.parse_args().runs
    protected, new_task = kept_sensitivity(runs / "attributions/sensitivity/attribution/sensitivity.safetensors")
    attributed = KeptScores(runs / "attributions/kva/attribution").scores().double().abs().mean(0)
    files = sorted((runs / "positions").glob("*.json"))
    loki = Positions.load(runs / "positions/kva-layer_balanced-30.json")
    rows = []
    for file in files:
        positions = Positions.load(file)
        ratios = [relative(positions, moments) for moments in (protected, new_task, attributed)]
        shared = sum(len(set(a) & set(b)) for a, b in zip(positions.rows, loki.rows, strict=True))
        common = shared / min(positions.count, loki.count)
        rows.append([file.stem, *(f"{ratio:.2f}" for ratio in ratios), f"{100 * common:.0f}%"])
    pairs = zip(protected, new_task, strict=True)
    agreement = torch.stack([torch.corrcoef(torch.stack([p.log(), n.log()]))[0, 1] for p, n in pairs])
    spread = f"{agreement.mean():.2f} ({agreement.min():.2f} to {agreement.max():.2f})"
    about = (
        "`python eval/studies/selections.py` on the runs of `make study`. Ratios against all rows of the same layer, "
        "mean over layers."
    )
    headings = ["selection", "sensitivity, protected", "sensitivity, new task", "mean abs. KVA"]
    write(
        "selections",
        "What the selections select",
        paragraph(about),
        table([*headings, "rows in common with LoKI q30"], rows),
        f"Correlation of the two log sensitivities over a layer's rows: {spread}.",
    )


def relative(positions: Positions, moments: Tensor) -> float:
    """Mean of the chosen rows over the mean of all, averaged over the layers that have any."""
    ratios = [
        float(layer[rows].mean() / layer.mean()) for rows, layer in zip(positions.rows, moments, strict=True) if rows
    ]
    return sum(ratios) / len(ratios)


if __name__ == "__main__":
    main()
