"""Model: what is essential about a training, in a few steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from async_trainer.errors import ConfigurationError

Loss = Tensor | dict[str, Tensor]


class Model(nn.Module, ABC):
    """A ``torch.nn.Module`` with the steps that a :class:`Trainer` calls, all on the training thread.

    The trainer moves the model and the batches to the device, applies autocast, switches gradients and training mode
    on and off, and sets gradients to None after each optimization step.
    """

    @abstractmethod
    def forward_step(self, batch: Any) -> Loss:
        """The loss of a training batch: a 0-d tensor, or a dict of them.

        Args:
            batch: as the loader made it, its tensors on the model's device.
        """

    def backward_step(self, loss: Loss, grad_scaler: torch.amp.GradScaler) -> None:
        """Compute the gradients. By default of ``loss``, or of the sum of the losses.

        Args:
            loss: what :meth:`forward_step` returned, divided by the number of batches that share a step.
            grad_scaler: scales the loss where AMP needs that; does nothing elsewhere.
        """
        total = loss if isinstance(loss, Tensor) else torch.stack(list(loss.values())).sum()
        grad_scaler.scale(total).backward()  # type: ignore[no-untyped-call]

    def optimization_step(self, optimizers: dict[str, Optimizer], grad_scaler: torch.amp.GradScaler) -> None:
        """Change the weights. By default each optimizer makes a step.

        Args:
            optimizers: those of :meth:`build_optimizers`.
            grad_scaler: as in :meth:`backward_step`; its ``update()`` is called by the trainer.
        """
        for optimizer in optimizers.values():
            if not grad_scaler.is_enabled() or has_gradients(optimizer):  # a scaler refuses to step without
                grad_scaler.step(optimizer)

    @abstractmethod
    def evaluation_step(self, batch: Any) -> Mapping[str, Any]:
        """What the metrics need of an evaluation batch, by name: ``{"preds": ..., "target": ...}``.

        Args:
            batch: as the loader made it, its tensors on the model's device.

        Returns:
            Tensors whose first dimension is the batch's. ``"preds"`` and ``"target"`` are the names that torchmetrics
            uses; ``"sample"``, if there, names the samples in the metrics' frames (tensors, strings, numbers).
        """

    @abstractmethod
    def build_optimizers(self) -> dict[str, Optimizer]:
        """New optimizers, by name; called at the start of each training, when the model is on its device."""

    def get_loss_functions(self) -> dict[str, Callable[..., Tensor]]:
        """The loss functions, by name: validation metrics too, of ``preds`` and ``target``. By default none."""
        return {}


def has_gradients(optimizer: Optimizer) -> bool:
    """Whether any of its parameters has a gradient now."""
    return any(one.grad is not None for group in optimizer.param_groups for one in group["params"])


def whole_state(model: nn.Module) -> dict[str, Any]:
    """Its ``state_dict()``, and the buffers that are left out there (``persistent=False``), but that a training may
    change."""
    state = dict(model.state_dict())
    return state | {_BUFFER + name: buffer for name, buffer in _buffers(model).items() if name not in state}


def load_whole_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Make it as :func:`whole_state` found it; a ``state_dict()`` alone leaves the other buffers as they are.

    Raises:
        RuntimeError, TypeError: it is of another model.
    """
    model.load_state_dict({name: value for name, value in state.items() if not name.startswith(_BUFFER)})
    for name in _buffers(model):
        if _BUFFER + name in state:
            owner, _, buffer = name.rpartition(".")
            setattr(model.get_submodule(owner), buffer, state[_BUFFER + name])


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_buffers(remove_duplicate=False))


_BUFFER = "(not in state_dict) "


class SupervisedModel(Model):
    """A network that learns targets from inputs.

    ::

        model = SupervisedModel(net, nn.CrossEntropyLoss(), lambda params: torch.optim.Adam(params, lr=1e-3))

    Args:
        network: from inputs to predictions.
        loss: of predictions and targets: a 0-d tensor.
        optimizer: makes an optimizer of the network's parameters.
        keys: where a batch is a mapping: its keys of input and target. A batch that is a tuple or a list starts with
            the two.

    Raises:
        ConfigurationError: an argument is of another kind.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        *,
        keys: tuple[str, str] = ("input", "target"),
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise ConfigurationError(f"network must be a torch.nn.Module, not {network!r}")
        if not callable(loss):
            raise ConfigurationError(f"loss must be a function of predictions and targets, not {loss!r}")
        if isinstance(loss, type):
            raise ConfigurationError(
                f"loss must be a function of predictions and targets: {loss.__name__}(), an instance"
            )
        if isinstance(optimizer, Optimizer) or not callable(optimizer):
            raise ConfigurationError(
                "optimizer must be a function that makes one of the parameters, such as "
                f"`lambda params: torch.optim.Adam(params, lr=1e-3)`: each training gets a new one; not {optimizer!r}"
            )
        if not isinstance(keys, (tuple, list)) or len(keys) != 2:
            raise ConfigurationError(f"keys must be a pair of names, of the input and of the target, not {keys!r}")
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.keys = tuple(keys)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's."""
        return self.network(*args, **kwargs)

    def forward_step(self, batch: Any) -> Tensor:
        """``loss(network(input), target)``."""
        inputs, target = self._pair(batch)
        return self.loss(self.network(inputs), target)

    def evaluation_step(self, batch: Any) -> dict[str, Any]:
        """``preds``: ``network(input)``; ``target``; ``sample``, where the batch is a mapping that has it."""
        inputs, target = self._pair(batch)
        output = {"preds": self.network(inputs), "target": target}
        if isinstance(batch, Mapping) and "sample" in batch:
            output["sample"] = batch["sample"]
        return output

    def build_optimizers(self) -> dict[str, Optimizer]:
        """``{"optimizer": ...}``."""
        return {"optimizer": self.optimizer(self.network.parameters())}

    def get_loss_functions(self) -> dict[str, Callable[..., Tensor]]:
        """``{"loss": ...}``."""
        return {"loss": self.loss}

    def _pair(self, batch: Any) -> tuple[Any, Any]:
        if isinstance(batch, Mapping):
            missing = [key for key in self.keys if key not in batch]
            if missing:
                raise ConfigurationError(
                    f"SupervisedModel: a batch has no {missing[0]!r}; it has: {', '.join(map(str, batch))}. Tell the "
                    'keys of input and target: SupervisedModel(..., keys=("image", "label"))'
                )
            return batch[self.keys[0]], batch[self.keys[1]]
        if isinstance(batch, (tuple, list)) and len(batch) >= 2:
            return batch[0], batch[1]
        raise ConfigurationError(
            f"SupervisedModel: a batch must start with input and target, or be a mapping that has them; this one is a "
            f"{type(batch).__name__}. For other batches write a Model with a forward_step and an evaluation_step"
        )
