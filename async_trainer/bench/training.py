"""A training whose weights and optimizer state are as big as one likes."""

from __future__ import annotations

import torch
from torch import nn

from async_trainer.train.state import TrainerState


class Loop:
    """Linear layers and Adam: ``megabytes`` of weights and of Adam's state in about ``tensors`` tensors, all big.

    Args:
        megabytes: in all.
        tensors: a layer has three: its weight and two of Adam's.
        batch: samples in a batch; with the sizes it sets what a step takes.
    """

    def __init__(self, megabytes: int, tensors: int, batch: int) -> None:
        layers = max(1, tensors // 3)
        width = int((megabytes * 1e6 / 4 / 3 / layers) ** 0.5)
        self.model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.optimizers = {"adam": self.optimizer}
        self.x = torch.randn(batch, width)
        self.state = TrainerState()
        self.step()  # Adam's state is made
        big = [*self.model.parameters(), *(t for s in self.optimizer.state.values() for t in s.values() if t.dim())]
        self.big: list[torch.Tensor] = [tensor.detach() for tensor in big]

    def step(self) -> None:
        """A training step, without events."""
        self.model(self.x).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
