"""Small models with what makes copying models hard."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize


class ConvNet(nn.Module):
    """Convolution, batch norm, and a plain tensor attribute that ``forward`` writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 6 * 6, 3)
        self.calls = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.norm(self.conv(x)).relu().flatten(1))


class Tied(nn.Module):
    """Weights tied as in a language model, a submodule under two names, and a buffer shared by two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.out = nn.Linear(5, 7, bias=False)
        self.out.weight = self.embed.weight
        self.block = nn.Linear(5, 5)
        self.again = self.block
        self.register_buffer("scale", torch.ones(5))
        self.block.register_buffer("scale", self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.again(self.block(self.embed(x))) * self.scale)


class Knotted(nn.Module):
    """References of every sort into its own tree, none of which the module machinery knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.layers = [self.first, self.second]
        self.by_name = {"second": self.second, "weights": (self.first.weight, self.second.weight)}
        self.hidden = [nn.Linear(3, 3)]
        self.first.__dict__["parent"] = self
        self.act = lambda x: self.second(x).tanh()
        self.bound = self.first.forward
        self.config: dict[str, Any] = {"lr": 0.1, "sizes": [3, 3]}

    def forward(self, x: Tensor) -> Tensor:
        for layer in [*self.layers, *self.hidden]:
            x = layer(x)
        return self.bound(self.act(x)) * self.first.parent.config["lr"]


class Picky(nn.Linear):
    """A class whose code must not run when it is captured or rebuilt."""

    armed = False

    def __init__(self, size: int) -> None:
        assert not Picky.armed
        super().__init__(size, size)

    def __setattr__(self, name: str, value: Any) -> None:
        assert not Picky.armed
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Picky:
        raise AssertionError("a replica is no deep copy")


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


def symmetric() -> nn.Module:
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def with_hooks_that_compute() -> nn.Module:
    """The older weight norm and spectral norm compute the weight in a forward hook."""
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3)), nn.utils.spectral_norm(nn.Linear(3, 3)))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.more = nn.ParameterList([nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))])
        self.named = nn.ParameterDict({"gain": nn.Parameter(torch.ones(8))})

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0] * self.more[0] * self.named["gain"] + self.more[1]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


NETS: dict[str, tuple[Any, Any]] = {
    "conv and batch norm": (ConvNet, lambda: torch.randn(4, 1, 8, 8)),
    "tied weights": (Tied, lambda: torch.tensor([[1, 2, 6]])),
    "references into its own tree": (Knotted, lambda: torch.randn(2, 3)),
    "LSTM": (Recurrent, lambda: torch.randn(2, 5, 3)),
    "attention, ParameterList and ParameterDict": (Attending, lambda: torch.randn(2, 5, 8)),
    "hooks that compute": (with_hooks_that_compute, lambda: torch.randn(2, 3)),
    "parametrized": (symmetric, lambda: torch.randn(2, 3)),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(3, 3)), lambda: torch.randn(2, 3)),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(3, 3)), lambda: torch.randn(2, 3)),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(3, 3)), lambda: torch.randn(2, 3)),
    "a class that minds": (lambda: Picky(3), lambda: torch.randn(2, 3)),
    "transformer layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0), lambda: torch.randn(2, 3, 8)),
}
"""name -> how to make the model, how to make its input."""


def seeded(make: Any, seed: int = 0) -> Any:
    """What ``make`` returns, the same each time, without a trace in the global generators."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def train_a_step(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
