"""The figure of one epoch. Objects only, never pyplot: pyplot keeps global state, and is for the main thread."""

from __future__ import annotations

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

SHOWN = 15
"""How many of the hardest digits are drawn, in rows of five."""


def draw_epoch(images: Tensor, labels: Tensor, logits: Tensor, *, title: str) -> Figure:
    """Draw how the net read the held-out digits.

    Args:
        images: float, shape (n, 1, 8, 8).
        labels: what they are, int64, shape (n,).
        logits: what the net made of them, shape (n, 10).
        title: over the figure.
    """
    figure = Figure(figsize=(11, 5.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    read = logits.argmax(1)
    wrong = int((read != labels).sum())
    figure.suptitle(f"{title}: {wrong} of {len(labels)} read wrongly")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.05))[0]

    axes = left.subplots()
    counts = torch.bincount(labels * 10 + read, minlength=100).reshape(10, 10)
    mistakes = counts - torch.diag(counts.diag())
    axes.imshow(mistakes.numpy(), cmap="Reds", vmin=0, vmax=2 * max(5, int(mistakes.max())))  # black text stays legible
    for row in range(10):
        for column in range(10):
            count = int(counts[row, column])
            if count:
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8)
    axes.set(xlabel="read as", ylabel="is", xticks=range(10), yticks=range(10))

    right.suptitle("hardest first (wrong ones in red)", fontsize="medium")
    chance = logits.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
    for cell, index in zip(
        right.subplots(SHOWN // 5, 5).flat, chance.argsort(stable=True)[:SHOWN].tolist(), strict=False
    ):
        cell.imshow(images[index, 0].numpy(), cmap="gray_r", interpolation="nearest")
        cell.set_axis_off()
        name = (
            f"{int(labels[index])}"
            if read[index] == labels[index]
            else f"{int(labels[index])}, read {int(read[index])}"
        )
        colour = "black" if read[index] == labels[index] else "firebrick"
        cell.set_title(f"{name} ({100 * float(chance[index]):.0f} %)", fontsize=8, color=colour)
    return figure
