"""Split: what one training learns from, and what it is validated on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from async_trainer.errors import ConfigurationError
from async_trainer.snapshot import capture

Data = Dataset[Any] | Iterable[Any]


class Split:
    """The data of one training.

    ::

        Split(0, train, val, batch_size=32)                       # datasets: the loaders are made
        Split(0, DataLoader(train, ...), DataLoader(val, ...))    # loaders: they are used

    To background callbacks it comes as it is.

    Args:
        index: the number of the split, from 0; its files go to ``split-<index>``.
        train: a dataset, or a loader: something that gives batches each time it is iterated.
        val: the same, for validation. None: there is none.
        **loader: for ``torch.utils.data.DataLoader``, where datasets are given. The training data is shuffled, in
            another order each epoch, unless ``shuffle`` or a sampler is given; the validation data never is.

    Raises:
        ConfigurationError: an argument of another kind, loader options without a dataset, or no training batch.
    """

    stays_here = True  # no other process gets it: it leads to all the data

    def __init__(self, index: int, train: Data, val: Data | None = None, **loader: Any) -> None:
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise ConfigurationError(f"index must be a whole number, 0 or more, not {index!r}")
        datasets = [data for data in (train, val) if data is not None and _is_dataset(data)]
        if loader and not datasets:
            raise ConfigurationError(f"{', '.join(loader)}: options for a loader, but loaders were given, not datasets")
        if val is not None and _is_dataset(val) and "batch_sampler" in loader:
            raise ConfigurationError("batch_sampler is for one dataset only: make the two loaders, and give those")
        self.index = index
        self._train = _loader("train", train, loader)
        if _length(self._train) == 0:
            raise ConfigurationError("train: there is no batch in it (fewer samples than a batch has, and drop_last?)")
        self._val = None if val is None else _loader("val", val, _unshuffled(loader))

    def __repr__(self) -> str:
        return f"Split({self.index}, train={_size(self._train)}, val={_size(self._val)})"

    @property
    def train_loader(self) -> Iterable[Any]:
        """Gives the training batches."""
        return self._train

    @property
    def val_loader(self) -> Iterable[Any] | None:
        """Gives the validation batches."""
        return self._val

    @classmethod
    def k_folds(cls, dataset: Dataset[Any], n_splits: int = 5, *, seed: int = 0, **loader: Any) -> Iterator[Split]:
        """``n_splits`` splits, of which each holds out another part of ``dataset``; drawn with ``seed`` alone.

        For folds by class or by group, make the indices with ``sklearn.model_selection`` and give
        ``torch.utils.data.Subset`` to :class:`Split`.

        Raises:
            ConfigurationError: ``n_splits`` is below 2, or above the number of samples.
        """
        if not isinstance(dataset, Sized):
            raise ConfigurationError(f"dataset must have a length, to be split; {dataset!r} has none")
        size = len(dataset)
        if isinstance(n_splits, bool) or not isinstance(n_splits, int) or not 2 <= n_splits <= size:
            raise ConfigurationError(
                f"n_splits must be a whole number from 2 to {size} (the samples), not {n_splits!r}"
            )
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
        bounds = [size * number // n_splits for number in range(n_splits + 1)]

        def fold(index: int) -> Split:
            start, end = bounds[index], bounds[index + 1]
            return cls(index, Subset(dataset, order[:start] + order[end:]), Subset(dataset, order[start:end]), **loader)

        return map(fold, range(n_splits))  # checked now, made when asked for


def _is_dataset(data: Any) -> bool:
    if isinstance(data, DataLoader):
        return False
    return isinstance(data, Dataset) or (
        hasattr(data, "__getitem__") and not isinstance(data, (list, tuple, str, bytes, Mapping, type))
    )


def _loader(name: str, data: Any, options: dict[str, Any]) -> Iterable[Any]:
    if _is_dataset(data):
        if not (options.keys() & {"shuffle", "sampler", "batch_sampler"} or isinstance(data, IterableDataset)):
            options = {"shuffle": name == "train", **options}
        try:
            return DataLoader(data, **options)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{name}: no DataLoader can be made with {options}: {error}") from error
    if isinstance(data, Mapping):
        raise ConfigurationError(
            f"{name} must be a dataset, or a loader that gives batches, not a mapping; one of its parts? "
            f"{', '.join(map(repr, data))}"
        )
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise ConfigurationError(f"{name} must be a dataset, or a loader that gives batches, not {data!r}")
    if isinstance(data, Iterator):
        raise ConfigurationError(
            f"{name} is an iterator, which is used up after one epoch; give a dataset, a DataLoader, or an object "
            "whose __iter__ starts anew"
        )
    return data


def _unshuffled(options: dict[str, Any]) -> dict[str, Any]:
    """The validation data comes whole, each sample once, in one order."""
    training_only = {"shuffle", "sampler", "drop_last"}
    return {name: value for name, value in options.items() if name not in training_only}


def _size(data: Any) -> str:
    length = _length(data)
    return "None" if data is None else "? batches" if length is None else f"{length} batches"


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:  # a DataLoader has a length only if its dataset has one
        return None


capture.register(Split)(lambda split: split)
