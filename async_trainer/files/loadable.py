"""What may be in a file: that which ``torch.load(weights_only=True)`` reads; checked before anything is written."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import torch

from async_trainer.errors import ConfigurationError

LEAVES = (type(None), bool, int, float, complex, str, bytes, torch.Tensor, torch.Size, torch.dtype, torch.device)


def check_loadable(value: Any, what: str) -> None:
    """Refuse what could not be loaded again.

    Args:
        value: a state.
        what: whose it is, for messages: ``"the state of early_stopping"``.

    Raises:
        ConfigurationError: names the key, and the remedy.
    """
    if type(value) in LEAVES or type(value) is torch.nn.Parameter:
        return
    if type(value) in (dict, OrderedDict):
        for key, part in value.items():
            check_loadable(key, f"{what}, the key {key!r:.60}")
            check_loadable(part, f"{what}[{key!r:.60}]")
        return
    if type(value) in (list, tuple, set):
        for place, part in enumerate(value):
            check_loadable(part, f"{what}[{place}]")
        return
    file = io.BytesIO()
    try:
        torch.save(value, file)
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    except Exception as error:
        raise ConfigurationError(
            f"{what} is a {type(value).__name__}, which torch.load(weights_only=True) does not read: keep it as "
            "numbers, strings, lists, dicts or tensors"
        ) from error
