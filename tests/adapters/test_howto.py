"""The adapter of the how-to, in a small trainer of somebody else's."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from async_trainer.errors import ConfigurationError, LaneError
from tests.test_docs import DOCS, read_blocks

LIMIT = 60.0  # s


@pytest.fixture(scope="module")
def in_background() -> Any:
    """The class of the page, from the page."""
    (code,) = [block.text for block in read_blocks(DOCS / "howto-adapter.md") if block.remark == "adapter"]
    assert len([line for line in code.splitlines() if line and not line.startswith("#")]) <= 30
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace["InBackground"]


class Foreign:
    """A trainer that knows nothing of us: it calls its callbacks with itself."""

    def __init__(self, *callbacks: Any) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(4, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.callbacks = callbacks
        self.step = 0

    def fit(self, steps: int = 6) -> list[float]:
        self._tell("before_fit")
        norms = []
        for _ in range(steps):
            loss = self.model(torch.randn(8, 4)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            norms.append(self.model.weight.norm().item())
            self._tell("after_step", loss)
        self._tell("after_fit")
        return norms

    def _tell(self, hook: str, *args: Any) -> None:
        for callback in self.callbacks:
            method = getattr(callback, hook, None)
            if method is not None:
                method(self, *args)


class Norms:
    """One of the foreign trainer's callbacks."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.norms: list[float] = []
        self.steps: list[int] = []

    def after_step(self, trainer: Any, loss: torch.Tensor) -> None:
        assert self.open.wait(LIMIT)
        assert loss.grad_fn is None
        self.steps.append(trainer.step)
        self.norms.append(trainer.model.weight.norm().item())


class Opens:
    def __init__(self, norms: Norms) -> None:
        self.norms = norms

    def after_fit(self, trainer: Any) -> None:
        self.norms.open.set()


def test_hooks_see_the_trainer_as_it_was_and_fit_returns_when_they_are_done(in_background: Any) -> None:
    norms = Norms()
    live = Foreign(Opens(norms), in_background(norms, sees=("model", "optimizer"))).fit()
    assert norms.norms == live
    assert norms.steps == [1, 2, 3, 4, 5, 6]


def test_what_is_not_named_is_not_there_and_nothing_can_be_set(in_background: Any) -> None:
    class Steers:
        def after_step(self, trainer: Any, loss: torch.Tensor) -> None:
            trainer.step = 100

    unnamed, steers = Norms(), Steers()
    unnamed.open.set()
    behind = [in_background(one) for one in (unnamed, steers)]
    trainer = Foreign(*behind)
    trainer.fit()
    assert trainer.step == 6
    assert [one.handler.close().failed for one in behind] == [6, 6]
    assert "can't be set in the background" in str(behind[1].handler.close().errors[0])


def test_a_callback_that_holds_the_model_is_refused(in_background: Any) -> None:
    norms = Norms()
    behind = in_background(norms, sees=("model",))
    trainer = Foreign(behind)
    norms.mine = trainer.model  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="holds the run's own weights"):
        trainer.fit()


def test_what_has_failed_is_raised_when_fit_ends_where_that_is_wanted(in_background: Any) -> None:
    class Fails:
        def before_fit(self, trainer: Any) -> None:
            raise OSError("no room")

    trainer = Foreign(in_background(Fails(), on_error="raise_at_end"))
    with pytest.raises(LaneError, match="no room"):
        trainer.fit()
    assert trainer.step == 6
