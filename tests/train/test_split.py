"""Split: the loaders that come out of datasets, loaders and lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from async_trainer import Split
from async_trainer.errors import ConfigurationError
from async_trainer.snapshot import capture


class Numbers(Dataset[int]):
    def __init__(self, size: int = 20) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < self.size:
            raise IndexError(place)
        return place


class Table:
    """As those of Hugging Face: no torch Dataset, but indexed and sized, and iterable too."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, place: int) -> dict[str, int]:
        return {"x": place}

    def __iter__(self) -> Iterator[dict[str, int]]:
        return map(self.__getitem__, range(20))


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


class Batches:
    """A loader of one's own."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter([torch.zeros(2), torch.ones(2)])


def samples(loader: Any) -> list[int]:
    return [int(one) for batch in loader for one in (batch["x"] if isinstance(batch, dict) else batch)]


def test_of_datasets_loaders_are_made() -> None:
    split = Split(3, Numbers(), Numbers(10), batch_size=4, drop_last=True)
    assert split.index == 3
    assert [len(batch) for batch in split.train_loader] == [4] * 5
    assert split.val_loader is not None
    assert [len(batch) for batch in split.val_loader] == [4, 4, 2]  # each validation sample counts


def test_training_data_is_shuffled_anew_each_epoch_and_validation_data_never() -> None:
    split = Split(0, Numbers(), Numbers(), batch_size=4)
    first, second = samples(split.train_loader), samples(split.train_loader)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))
    assert samples(split.val_loader) == samples(split.val_loader) == list(range(20))


def test_the_orders_are_those_of_the_seed() -> None:
    def epochs(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        split = Split(0, Numbers(), batch_size=4)
        return [samples(split.train_loader) for _ in range(3)]

    assert epochs(1) == epochs(1)
    assert epochs(1) != epochs(2)


def test_who_asks_for_no_shuffling_gets_none() -> None:
    assert samples(Split(0, Numbers(), batch_size=4, shuffle=False).train_loader) == list(range(20))


def test_shuffle_and_sampler_are_for_the_training_data_alone() -> None:
    split = Split(0, Numbers(), Numbers(), sampler=[5, 6, 7])
    assert samples(split.train_loader) == [5, 6, 7]
    assert samples(split.val_loader) == list(range(20))
    assert samples(Split(0, Numbers(), Numbers(), shuffle=True).val_loader) == list(range(20))


def test_a_batch_sampler_is_for_one_dataset() -> None:
    assert samples(Split(0, Numbers(), batch_sampler=[[3, 4], [5]]).train_loader) == [3, 4, 5]
    with pytest.raises(ConfigurationError, match="batch_sampler is for one dataset only"):
        Split(0, Numbers(), Numbers(), batch_sampler=[[3, 4], [5]])


def test_what_is_indexed_and_sized_is_a_dataset() -> None:
    split = Split(0, Table(), Table(), batch_size=5)
    assert sorted(samples(split.train_loader)) == list(range(20))
    assert samples(split.val_loader) == list(range(20))


def test_an_iterable_dataset_is_batched_in_its_order() -> None:
    split = Split(0, Stream(), Stream(), batch_size=4)
    assert samples(split.train_loader) == samples(split.train_loader) == list(range(10))
    with pytest.raises(ConfigurationError, match=r"train: no DataLoader can be made with .*shuffle"):
        Split(0, Stream(), shuffle=True)


def test_loaders_are_used_as_they_are() -> None:
    train, val = DataLoader(Numbers(), batch_size=2), [torch.zeros(2), torch.ones(2)]
    split = Split(0, train, val)
    assert split.train_loader is train
    assert split.val_loader is val
    own = Batches()
    assert Split(0, own).train_loader is own
    assert Split(0, own).val_loader is None


def test_options_go_to_the_dataset_that_there_is() -> None:
    train = DataLoader(Numbers(), batch_size=2)
    split = Split(0, train, Numbers(), batch_size=10)
    assert split.train_loader is train
    assert split.val_loader is not None
    assert [len(batch) for batch in split.val_loader] == [10, 10]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((-1, Numbers()), {}, "index must be a whole number, 0 or more, not -1"),
        ((True, Numbers()), {}, "index must be"),
        ((0.0, Numbers()), {}, "index must be"),
        (("0", Numbers()), {}, "index must be"),
        ((0, 5), {}, "train must be a dataset, or a loader that gives batches, not 5"),
        ((0, "data"), {}, "train must be a dataset"),
        ((0, None), {}, "train must be a dataset"),
        ((0, Numbers), {}, "train must be a dataset"),
        ((0, Numbers(), 5), {}, "val must be a dataset"),
        ((0, {"train": Numbers(), "test": Numbers()}), {}, "not a mapping; one of its parts[?] 'train', 'test'"),
        ((0, iter([torch.zeros(2)])), {}, "train is an iterator, which is used up after one epoch"),
        ((0, Numbers(), (batch for batch in [])), {}, "val is an iterator"),
        ((0, [torch.zeros(2)]), {"batch_size": 4}, "batch_size: options for a loader, but loaders were given"),
        ((0, Numbers()), {"batchsize": 4}, "no DataLoader can be made.*batchsize"),
        ((0, Numbers()), {"batch_size": 0}, "no DataLoader can be made.*batch_size"),
        ((0, Numbers()), {"prefetch_factor": 2}, "no DataLoader can be made"),
        ((0, Numbers(0)), {}, "no DataLoader can be made"),
        ((0, []), {}, "train: there is no batch in it"),
        ((0, Numbers(3)), {"batch_size": 4, "drop_last": True}, "train: there is no batch in it.*drop_last"),
    ],
)
def test_what_can_not_be_trained_on_is_refused(arguments: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Split(*arguments, **options)


def test_its_repr_tells_the_batches_where_they_are_known() -> None:
    assert repr(Split(2, Numbers(), batch_size=8)) == "Split(2, train=3 batches, val=None)"
    assert repr(Split(0, Stream(), Batches())) == "Split(0, train=? batches, val=? batches)"


def test_hooks_in_the_background_get_the_split_itself() -> None:
    split = Split(0, Numbers())
    assert capture(split) is split


# -------------------------------------------------------------------------------------------------------------- folds


@pytest.mark.parametrize(("size", "folds"), [(20, 5), (20, 3), (7, 7), (2, 2), (11, 10)])
def test_folds_hold_out_each_sample_once_and_train_on_the_others(size: int, folds: int) -> None:
    splits = list(Split.k_folds(Numbers(size), folds, batch_size=3))
    assert [split.index for split in splits] == list(range(folds))
    held_out = [samples(split.val_loader) for split in splits]
    assert sorted(one for held in held_out for one in held) == list(range(size))
    assert max(map(len, held_out)) - min(map(len, held_out)) <= 1
    for split, held in zip(splits, held_out, strict=True):
        assert sorted(samples(split.train_loader) + held) == list(range(size))


def test_folds_are_drawn_with_their_seed_alone() -> None:
    def held_out(seed: int) -> list[list[int]]:
        return [samples(split.val_loader) for split in Split.k_folds(Numbers(), 4, seed=seed)]

    torch.manual_seed(3)
    before = torch.get_rng_state()
    folds = list(Split.k_folds(Numbers(), 4, seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert [samples(fold.val_loader) for fold in folds] == held_out(1)
    assert held_out(1) != held_out(2)
    assert held_out(0) != [list(range(start, start + 5)) for start in range(0, 20, 5)]


def test_folds_of_a_table_and_of_tensors() -> None:
    assert len(list(Split.k_folds(Table(), 4))) == 4  # type: ignore[arg-type]
    folds = list(Split.k_folds(TensorDataset(torch.arange(6), torch.arange(6))))
    assert all(isinstance(fold.train_loader.dataset, Subset) for fold in folds)  # type: ignore[attr-defined]


@pytest.mark.parametrize("folds", [0, 1, 21, True, 2.0, "5"])
def test_a_number_of_folds_that_can_not_be_is_refused_at_once(folds: Any) -> None:
    with pytest.raises(ConfigurationError, match="n_splits must be a whole number from 2 to 20"):
        Split.k_folds(Numbers(), folds)


def test_what_has_no_length_has_no_folds() -> None:
    with pytest.raises(ConfigurationError, match="dataset must have a length"):
        Split.k_folds(Stream())
