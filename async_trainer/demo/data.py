"""The handwritten digits that scikit-learn ships: 1,797 images of 8 x 8 pixels, from 43 writers; nothing is downloaded.

Source: https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits (its test part).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

HELD_OUT = 500
BATCH_SIZE = 32

Loader = DataLoader[tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Digits:
    """Images, float32 in [0, 1], shape (n, 1, 8, 8), and their labels, int64, shape (n,)."""

    training: TensorDataset
    held_out: TensorDataset

    def training_batches(self, *, seed: int) -> Loader:
        """The training digits, in another order each epoch; the orders depend on ``seed`` alone."""
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(self.training, batch_size=BATCH_SIZE, shuffle=True, generator=generator)

    def held_out_batches(self) -> Loader:
        """The held-out digits, always in the same order."""
        return DataLoader(self.held_out, batch_size=2 * BATCH_SIZE)


def load_digits(*, seed: int) -> Digits:
    """Read the digits and hold 500 of them out, drawn with ``seed``."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = torch.as_tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.as_tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held_out, training = order[:HELD_OUT], order[HELD_OUT:]
    return Digits(
        training=TensorDataset(images[training], labels[training]),
        held_out=TensorDataset(images[held_out], labels[held_out]),
    )
