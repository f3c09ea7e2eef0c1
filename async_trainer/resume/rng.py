"""The random generators: python's, NumPy's, torch's on the CPU and on accelerators, and those of a data loader."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch


def take_rng(loaders: Iterable[Any] = ()) -> dict[str, Any]:
    """The states of all generators, in tensors and plain values. The training thread.

    Args:
        loaders: data loaders whose own generators (their samplers', too) are part of it.
    """
    version, numbers, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    taken: dict[str, Any] = {
        "python": {"version": version, "numbers": torch.tensor(numbers, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "kind": str(kind), "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)), "place": int(place),
            "has_gauss": int(has_gauss), "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "loader": [generator.get_state() for generator in generators_of(loaders)],
    }  # fmt: skip
    if torch.accelerator.is_available():
        kind_of = torch.accelerator.current_accelerator()
        assert kind_of is not None
        taken["accelerator"] = torch.get_device_module(kind_of).get_rng_state_all()
    return taken


def put_rng(taken: Mapping[str, Any], loaders: Iterable[Any] = ()) -> None:
    """Set all generators to the states that :func:`take_rng` returned. The training thread."""
    python, numpy = taken["python"], taken["numpy"]
    random.setstate((python["version"], tuple(python["numbers"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["kind"], keys, numpy["place"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(taken["torch"])
    for generator, state in zip(generators_of(loaders), taken["loader"], strict=False):
        generator.set_state(state)
    if "accelerator" in taken and torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        assert kind is not None
        torch.get_device_module(kind).set_rng_state_all(taken["accelerator"])


def generators_of(loaders: Iterable[Any]) -> list[torch.Generator]:
    """The generators that iterating loaders draws from, besides the global ones; each once."""
    found: list[torch.Generator] = []
    holders: list[Any] = []
    for loader in loaders:
        batches = getattr(loader, "batch_sampler", None)
        holders += [loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]
    for holder in holders:
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator) and not any(generator is one for one in found):
            found.append(generator)
    return found
