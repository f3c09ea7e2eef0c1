"""The net that the demo trains."""

from __future__ import annotations

import torch
from torch import nn


def make_net(*, seed: int, width: int = 48) -> nn.Sequential:
    """A convolutional net for images of shape (n, 1, 8, 8): three blocks, then two dense layers, 10 logits.

    It has what makes snapshots interesting: batch norms (buffers that change in the forward pass) and dropout (which
    draws from torch's global generator).

    Args:
        seed: the initial weights depend on it alone; torch's global generator is left as it was.
        width: channels of the first block; the default makes 507,946 parameters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            *_block(1, width),
            *_block(width, 2 * width),
            nn.MaxPool2d(2),
            *_block(2 * width, 4 * width),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * width, 8 * width),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(8 * width, 10),
        )


def _block(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU()
