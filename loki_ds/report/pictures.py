"""Pictures of a run, drawn by matplotlib as PNG files.

Each takes plain numbers; none knows where they come from.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.ticker import ScalarFormatter
from torch import Tensor

from loki_ds.disk.files import written_whole
from loki_ds.report.schema import TaskLine

COLUMNS = 256  # of a heat map; wider layers are drawn in bins
EXTREME = 0.01  # share of all nodes that count as high or low (the paper's suppression ablation)


class Point(TypedDict):
    """One run on the plane of skill (0 to 1) and what was lost (percent)."""

    skill: float
    lost: float


def heat_map(scores: Tensor, path: Path) -> None:
    """KVA over the model (paper's Fig. 2-5): mean score of every node by layer, and where the
    highest and lowest 1% of nodes lie.

    scores: `[prompts, layers, d_model]`. Bins of a wide layer show their most extreme node.
    """
    mean = scores.double().mean(0).numpy()
    layers, d_model = mean.shape
    figure, (nodes, depth) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(2.2, 1), layout="constrained")
    bins = np.array_split(np.arange(d_model), min(d_model, COLUMNS))
    shown = np.stack([mean[np.arange(layers), b[np.abs(mean[:, b]).argmax(1)]] for b in bins], axis=1)
    largest = float(np.abs(mean).max()) or 1.0
    scale = SymLogNorm(linthresh=largest / 1000, vmin=-largest, vmax=largest)
    image = nodes.imshow(
        shown,
        aspect="auto",
        cmap="RdBu_r",
        norm=scale,
        extent=(0, d_model, layers - 0.5, -0.5),
        interpolation="nearest",
    )
    nodes.set(xlabel="node (row of W_down)", ylabel="layer", title="mean score of every node")
    figure.colorbar(image, ax=nodes)
    count = max(1, round(EXTREME * mean.size))
    order = np.argsort(mean, axis=None, kind="stable")
    for name, chosen, color in (("highest 1%", order[-count:], "tab:red"), ("lowest 1%", order[:count], "tab:blue")):
        share = np.bincount(chosen // d_model, minlength=layers) / count
        depth.plot(share, np.arange(layers), marker="o", markersize=3, label=name, color=color)
    depth.set(xlabel="share of these nodes", ylabel="layer", title="where the extreme nodes lie")
    depth.invert_yaxis()
    depth.legend()
    _save(figure, path)


def overlap_curve(curve: Sequence[dict[str, float]], chance: float, path: Path) -> None:
    """Overlap (0 to 1) of rows selected from two halves of the prompts against their number, and
    what chance gives.
    """
    figure, axes = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
    axes.plot([point["prompts"] for point in curve], [100 * point["overlap"] for point in curve], marker="o")
    axes.axhline(100 * chance, color="black", linewidth=0.8, linestyle=":", label="by chance")
    axes.legend()
    axes.set(
        xlabel="prompts",
        ylabel="rows in common, percent",
        title="selection from two halves of the prompts",
        ylim=(0, 102),
    )
    axes.grid(alpha=0.3)
    _save(figure, path)


def dial(places: Mapping[str, Mapping[str, Any]], chosen: str, path: Path) -> None:
    """Losses alone along the dial (`stages.curve.Point`, by its scale in words), against the new
    task's score where there is one, with 95% intervals; the chosen place is ringed.
    """
    figure, axes = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    skilled = places[chosen]["skill"] is not None
    for name, place in places.items():
        across = 100 * place["skill"] if skilled else place["scale"]
        lost, (low, high) = place["losses_only"], place["losses_only_ci"]
        ends = [[max(0.0, lost - low)], [max(0.0, high - lost)]]
        axes.errorbar([across], [lost], yerr=ends, fmt="o", capsize=3, color="tab:blue")
        axes.annotate(name, (across, lost), textcoords="offset points", xytext=(6, 4), fontsize="small")
        if name == chosen:
            axes.plot([across], [lost], "o", markersize=14, fillstyle="none", color="black")
    label = "new task, percent" if skilled else "share of the trained change"
    axes.set(xlabel=label, ylabel="losses alone, percent", title="the dial, by scale")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.grid(alpha=0.3)
    _save(figure, path)


def retention(tasks: Sequence[TaskLine], margin: float, path: Path) -> None:
    """Each task's change with its 95% interval, worse to the left, beside the margin up to which a
    loss counts as kept. tasks: as in `report.json`.
    """
    colors = {"kept": "tab:green", "lost": "tab:red", "not shown": "tab:gray"}
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.38 * len(tasks)), layout="constrained")
    for place, task in enumerate(tasks):
        to_points = 100 * (1 if task["higher_is_better"] else -1) * (margin / task["margin"] if task["margin"] else 1)
        axes.plot([to_points * end for end in task["ci"]], [place, place], color=colors[task["verdict"]], linewidth=2)
        axes.plot(to_points * task["change"], place, "o", color=colors[task["verdict"]])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(-100 * margin, color="black", linewidth=0.8, linestyle=":")
    names = [f"{task['task']} ({task['verdict']})" for task in tasks]
    xlabel = "change in points, with 95% interval; worse to the left; dotted: the margin"
    axes.set(yticks=range(len(tasks)), yticklabels=names, xlabel=xlabel)
    axes.invert_yaxis()
    _save(figure, path)


def training_curves(log: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss and gradient norm over the steps. log: Trainer's log history."""
    steps = [entry for entry in log if "loss" in entry]
    figure, (loss, norm) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for axes, key, title in ((loss, "loss", "training loss"), (norm, "grad_norm", "gradient norm over what trains")):
        values = [float(entry[key]) for entry in steps]
        axes.plot([entry["step"] for entry in steps], values)
        over_a_decade = min(values, default=1) > 0 and max(values, default=1) > 10 * min(values, default=1)
        axes.set(xlabel="step", title=title, yscale="log" if over_a_decade else "linear")
        axes.grid(alpha=0.3)
    evaluated = [entry for entry in log if "eval_loss" in entry]
    if evaluated:
        loss.plot(
            [entry["step"] for entry in evaluated],
            [entry["eval_loss"] for entry in evaluated],
            marker="o",
            label="held out",
        )
        loss.legend()
    _save(figure, path)


def trade_off(methods: Mapping[str, Sequence[Point]], measure: str, path: Path, enough: float | None = None) -> None:
    """What was lost (percent) against the new task's score: a line a method, a point a setting, so
    methods compare at equal skill.

    measure: its name; enough: the skill at which methods are compared.
    """
    figure, axes = plt.subplots(figsize=(8.5, 5), layout="constrained")
    markers, colors = "osD^v<>pP*Xh", plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for i, (name, points) in enumerate(methods.items()):
        ordered = sorted(points, key=lambda point: point["skill"])
        skill, lost = [100 * point["skill"] for point in ordered], [point["lost"] for point in ordered]
        axes.plot(skill, lost, marker=markers[i % len(markers)], color=colors[i % len(colors)], linewidth=1, label=name)
    if enough is not None:
        axes.axvline(100 * enough, color="black", linewidth=0.8, linestyle=":")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=1)
    lowest = min((point["lost"] for points in methods.values() for point in points), default=0.0)
    axes.set_ylim(bottom=min(-0.2, 1.2 * lowest))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_yticks([tick for tick in (-10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50, 100) if tick >= min(0, lowest)])
    axes.set(xlabel="new task, percent (right is better)", ylabel=f"{measure}, percent (down is better)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    with written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
    plt.close(figure)
