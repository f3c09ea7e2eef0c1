"""EarlyStopping: ends a training that no longer improves."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from async_trainer.callback import Callback
from async_trainer.callbacks.values import check_metric, metric_value
from async_trainer.errors import ConfigurationError
from async_trainer.suggest import refuse_unknown_options, suggestion
from async_trainer.train.state import TrainerState

logger = logging.getLogger("async_trainer")


class EarlyStopping(Callback):
    """Sets ``state.should_stop`` after some validations without improvement; the loop ends after that epoch.

    ``stop_reason`` says why then; :class:`Progress` shows it.

    It only ever sets it: another callback's wish to stop stands. NaN is no improvement, nor is infinity. Each training
    (each split of a k-fold) starts anew; a resumed one goes on counting. Inline, on the training thread.

    Args:
        metric: the name of a validation metric.
        mode: ``"min"``: lower is better; ``"max"``: higher is.
        patience: validations without improvement, one after the other, after which to stop.
        min_delta: how much better than the best value a value must be to count as an improvement, in the metric's unit.

    Raises:
        ConfigurationError: an argument out of range; at the start of a training, a metric that there isn't.
    """

    steers: ClassVar[bool] = True

    @refuse_unknown_options
    def __init__(
        self,
        metric: str = "loss",
        *,
        mode: Literal["min", "max"] = "min",
        patience: int = 5,
        min_delta: float = 0.0,
    ) -> None:
        if not isinstance(metric, str) or not metric:
            raise ConfigurationError(f"EarlyStopping: metric must be the name of a metric, not {metric!r}")
        if mode not in ("min", "max"):
            hint = suggestion(mode, ("min", "max")) if isinstance(mode, str) else ""
            raise ConfigurationError(
                f"EarlyStopping: mode must be 'min' (lower is better) or 'max', not {mode!r}{hint}"
            )
        if not isinstance(patience, int) or isinstance(patience, bool) or patience < 1:
            raise ConfigurationError(
                f"EarlyStopping: patience must be a whole number of validations, 1 or more, not {patience!r}"
            )
        if not isinstance(min_delta, (int, float)) or isinstance(min_delta, bool) or not 0 <= min_delta < math.inf:
            raise ConfigurationError(f"EarlyStopping: min_delta must be a number, 0 or more, not {min_delta!r}")
        self.metric = metric
        self.mode = mode
        self.patience = patience
        self.min_delta = float(min_delta)
        self._forget()

    def __repr__(self) -> str:
        return f"<EarlyStopping: {self.metric}, best {self.best}, {self.waited} of {self.patience} without improvement>"

    def _forget(self) -> None:
        self.best = math.inf if self.mode == "min" else -math.inf
        self.waited = 0
        self.stop_reason: str | None = None

    def check_training(self, **arguments: Any) -> None:
        """Refuse a training without that metric."""
        check_metric(arguments, self.metric, "EarlyStopping: metric")

    def on_train_start(self, **kwargs: Any) -> None:
        """Count anew."""
        self._forget()

    def on_validation_end(self, *, state: TrainerState, metrics: Any, **kwargs: Any) -> None:
        """Compare the validation with the best one so far."""
        value = metric_value(metrics, self.metric, "EarlyStopping: metric")
        if self._improves(value):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            state.should_stop = True
            validations = "1 validation" if self.waited == 1 else f"{self.waited} validations"
            self.stop_reason = f"{self.metric} has not improved on {self.best:g} in {validations}"
            logger.info("early stopping in epoch %d: %s", state.current_epoch, self.stop_reason)

    def _improves(self, value: float) -> bool:
        if self.mode == "min":
            return value < self.best - self.min_delta
        return value > self.best + self.min_delta

    def state_dict(self) -> dict[str, Any]:
        """The best value, and how many validations were no better."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on counting from ``state_dict``."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]
