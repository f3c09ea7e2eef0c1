"""OptimizationConfig and ComputationalConfig. No accelerator is needed: torch is told that there is one."""

from __future__ import annotations

import dataclasses
import inspect
import json
import random
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch

from async_trainer import ComputationalConfig, OptimizationConfig
from async_trainer.errors import ConfigurationError
from async_trainer.snapshot import capture


def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


def none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("name", ["num_epochs", "accumulation_steps", "evaluation_interval"])
@pytest.mark.parametrize("value", [0, -1, True, 1.0, "3", None])
def test_counts_are_whole_numbers_from_one(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} must be a whole number, 1 or more, not {value!r}"):
        OptimizationConfig(**{name: value})


@pytest.mark.parametrize(
    ("make", "option", "meant"),
    [(OptimizationConfig, "epochs", "num_epochs"), (ComputationalConfig, "devise", "device")],
)
def test_a_misspelt_option_is_refused_with_a_hint(make: Any, option: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{make.__name__}.. has no option '{option}'; did you mean '{meant}'"):
        make(**{option: 4})
    assert list(inspect.signature(make).parameters) == [field.name for field in dataclasses.fields(make)]


@pytest.mark.parametrize("name", ["clip_grad_norm", "clip_grad_value"])
@pytest.mark.parametrize("value", [0, -1.0, True, float("nan"), "3"])
def test_limits_are_above_zero(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} must be a number above 0, or None"):
        OptimizationConfig(**{name: value})


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"amp": 1}, "amp must be True or False, not 1"),
        ({"channels_last": None}, "channels_last must be True or False"),
        ({"deterministic": "yes"}, "deterministic must be True or False"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"seed": 2**32}, "seed must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"seed": 1.0}, "seed must be a whole number"),
        ({"device": "cuda"}, "device='cuda': there is no such device here; there are: cpu"),
        ({"device": "gpu"}, "device='gpu': there is no such device"),
        ({"device": ""}, "no such device"),
        ({"device": 0}, "device=0: there is no such device"),
        ({"device": ["cpu"]}, "no such device"),
        ({"device": torch.device("cuda:1")}, "device='cuda:1': there is no such device"),
        ({"device": "meta"}, "no such device"),
    ],
)
def test_what_can_not_be_computed_on_is_refused(
    field: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    none(monkeypatch)
    with pytest.raises(ConfigurationError, match=message):
        ComputationalConfig(**field)


def test_configs_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        OptimizationConfig().num_epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "config",
    [
        OptimizationConfig(),
        OptimizationConfig(num_epochs=3, accumulation_steps=2, evaluation_interval=5, clip_grad_norm=0.1),
        OptimizationConfig(clip_grad_value=1),
        ComputationalConfig(),
        ComputationalConfig(device="cpu", amp=True, channels_last=True, seed=7, deterministic=True),
        ComputationalConfig(device=torch.device("cpu")),  # type: ignore[arg-type]
    ],
)
def test_a_config_comes_back_from_json(config: Any) -> None:
    again = type(config).from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert type(again) is type(config)


def test_a_field_that_is_not_known_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigurationError, match=r"OptimizationConfig has no field 'num_epoch'.*'num_epochs'"):
        OptimizationConfig.from_dict({"num_epoch": 3})
    with pytest.raises(ConfigurationError, match="num_epochs must be a whole number"):
        OptimizationConfig.from_dict({"num_epochs": "3"})


@pytest.mark.parametrize("config", [OptimizationConfig(), ComputationalConfig()])
def test_hooks_in_the_background_get_the_config_itself(config: Any) -> None:
    assert capture(config) is config


# ------------------------------------------------------------------------------------------------------------- devices


def test_the_accelerator_is_used_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    two_cards(monkeypatch)
    assert ComputationalConfig().torch_device == torch.device("cuda")
    assert ComputationalConfig(device="cuda:1").torch_device == torch.device("cuda:1")
    assert ComputationalConfig(device="cpu").torch_device == torch.device("cpu")
    with pytest.raises(ConfigurationError, match="there are: cpu, cuda, cuda:0, cuda:1"):
        ComputationalConfig(device="cuda:2")


def test_else_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    none(monkeypatch)
    assert ComputationalConfig().torch_device == torch.device("cpu")
    assert ComputationalConfig(device="cpu:0").torch_device.type == "cpu"


def test_on_the_cpu_amp_is_bfloat16_and_needs_no_scaler() -> None:
    config = ComputationalConfig(device="cpu", amp=True)
    with config.autocast():
        assert (torch.zeros(2, 2) @ torch.zeros(2, 2)).dtype == torch.bfloat16
    assert not config.grad_scaler().is_enabled()


def test_without_amp_nothing_is_cast() -> None:
    config = ComputationalConfig(device="cpu")
    with config.autocast():
        assert (torch.zeros(2, 2) @ torch.zeros(2, 2)).dtype == torch.float32
    assert not config.grad_scaler().is_enabled()


def test_a_scaler_is_for_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: made.append((device, enabled)))
    two_cards(monkeypatch)
    ComputationalConfig(amp=True).grad_scaler()
    ComputationalConfig(amp=False).grad_scaler()
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.bfloat16)
    ComputationalConfig(amp=True).grad_scaler()
    assert made == [("cuda", True), ("cuda", False), ("cuda", False)]


def test_the_memory_format_is_as_asked() -> None:
    assert ComputationalConfig().memory_format is torch.contiguous_format
    assert ComputationalConfig(channels_last=True).memory_format is torch.channels_last


# --------------------------------------------------------------------------------------------- seeds and determinism


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_seed_is_for_the_generators_of_python_numpy_and_torch() -> None:
    with ComputationalConfig(seed=5).applied():
        first = drawn()
    with ComputationalConfig(seed=5).applied():
        assert drawn() == first
    with ComputationalConfig(seed=6).applied():
        other = drawn()
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_without_a_seed_they_go_on() -> None:
    with ComputationalConfig(seed=5).applied():
        first, second = drawn(), drawn()
    with ComputationalConfig(seed=5).applied():
        assert drawn() == first
    with ComputationalConfig().applied():
        assert drawn() == second


@pytest.mark.parametrize("before", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_deterministic_ends_with_the_run_however_it_ends(before: tuple[bool, bool], error: Any) -> None:
    def now() -> tuple[bool, bool, bool]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
        )

    at_first = now()
    try:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = True
        try:
            with ComputationalConfig(deterministic=True).applied():
                assert now() == (True, False, False)
                if error:
                    raise error
        except (ValueError, KeyboardInterrupt):
            pass
        assert now() == (*before, True)
    finally:
        torch.use_deterministic_algorithms(at_first[0], warn_only=at_first[1])
        torch.backends.cudnn.benchmark = at_first[2]


def test_a_run_that_does_not_ask_for_it_leaves_it_as_it_is() -> None:
    at_first = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        with ComputationalConfig().applied():
            assert torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(at_first)
