"""Attributes, items and ``with``: read at once, made on the lane, or refused."""

from __future__ import annotations

import contextlib
import inspect
import logging
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from async_trainer import CallbacksHandler
from async_trainer.errors import LaneError
from async_trainer.proxy.handle import Handle
from async_trainer.proxy.stand_in import Proxy
from tests.proxy.kit import Gate, Sink, shut


class Mode(Enum):
    ON = 1


class Summary(dict[str, Any]):
    """Attribute-like too, as wandb's."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]


class Run(Gate):
    """Something like an experiment tracker's run."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "run 1"
        self.id = 7
        self.path = Path("runs")
        self.mode = Mode.ON
        self.best: Any = None
        self.summary = Summary()
        self.config = types.SimpleNamespace(lr=1.0, model=types.SimpleNamespace(width=8))
        self.reads = 0

    @property
    def url(self) -> str:
        self.reads += 1
        return f"https://example.org/{self.id}"

    @property
    def broken(self) -> str:
        raise RuntimeError("not logged in")

    @property
    def lr(self) -> float:
        return float(self.config.lr)

    @lr.setter
    def lr(self, value: float) -> None:
        if value < 0:
            raise ValueError("lr must be positive")
        self.config.lr = value

    def set_best(self, value: Any) -> None:
        self.best = value


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture
def proxy(handler: CallbacksHandler, run: Run) -> Any:
    return handler.proxy(run)


# ----------------------------------------------------------------------------------------------------------- reading


def test_plain_values_are_read_at_once(proxy: Any, run: Run) -> None:
    assert (proxy.name, proxy.id, proxy.path, proxy.mode, proxy.best) == ("run 1", 7, Path("runs"), Mode.ON, None)
    run.id = 8
    assert proxy.id == 8


def test_a_property_is_read_each_time(proxy: Any, run: Run) -> None:
    assert proxy.url == proxy.url == "https://example.org/7"
    assert run.reads == 2


def test_what_a_property_raises_is_raised(proxy: Any) -> None:
    with pytest.raises(RuntimeError, match="not logged in"):
        _ = proxy.broken


def test_a_misspelt_name_raises_at_once(proxy: Any) -> None:
    with pytest.raises(AttributeError, match="'Run' object has no attribute 'ad'"):
        proxy.ad(1)
    assert not hasattr(proxy, "ad")
    assert hasattr(proxy, "add")


def test_a_nested_plain_value_is_read_at_once(proxy: Any) -> None:
    assert proxy.config.lr == 1.0
    assert proxy.config.model.width == 8
    assert repr(proxy.config.model) == "<proxy of Run.config.model, lane run>"


def test_an_attribute_that_is_none_at_first_and_an_object_later_is_read_as_it_is(
    handler: CallbacksHandler, proxy: Any
) -> None:
    assert proxy.best is None
    proxy.set_best([1])
    handler.flush()
    proxy.best.append(2)
    assert isinstance(proxy.best, Proxy)
    handler.flush()
    proxy.set_best(None)
    handler.flush()
    assert proxy.best is None


def test_a_method_is_looked_up_once(proxy: Any) -> None:
    assert proxy.add is proxy.add


def test_names_of_the_object_are_not_taken_by_the_proxy(handler: CallbacksHandler) -> None:
    own = {name for name in vars(handler.proxy(Sink())) if not name.startswith("_async_trainer")}
    own |= {name for cls in Proxy.__mro__ for name in vars(cls) if not (name.startswith("__") and name.endswith("__"))}
    assert own == set()


def test_a_proxy_is_an_instance_of_the_class_of_its_target(handler: CallbacksHandler, proxy: Any) -> None:
    assert isinstance(proxy, Run)
    assert isinstance(proxy, Sink)
    assert not isinstance(proxy, logging.Handler)
    assert isinstance(handler.proxy(logging.NullHandler()), logging.Handler)
    assert isinstance(handler.proxy(logging), types.ModuleType)
    assert not isinstance(handler.proxy(factory=Run), Run)
    assert type(proxy) is Proxy


def test_what_describes_a_module_or_function_is_read(handler: CallbacksHandler) -> None:
    def save(state: Any, *, path: str = "a.pt") -> None:
        """Save it."""

    module, function = handler.proxy(logging), handler.proxy(save)
    assert module.__version__ == logging.__version__
    assert module.__name__ == "logging"
    assert function.__name__ == "save"
    assert inspect.signature(function) == inspect.signature(save)
    assert not inspect.iscoroutinefunction(function)


def test_what_others_look_for_in_any_object_is_not_there(handler: CallbacksHandler, proxy: Any) -> None:
    for stand_in in (proxy, proxy.config, handler.proxy(factory=Run), proxy.add(1)):
        for name in ("__array__", "__torch_function__", "__fspath__", "__deepcopy__", "__name__", "__wrapped__"):
            assert not hasattr(stand_in, name)


def test_dir_lists_the_names_of_the_object(proxy: Any) -> None:
    assert {"add", "summary", "url"} <= set(dir(proxy))
    assert {"lr", "model"} <= set(dir(proxy.config))


# ------------------------------------------------------------------------------------------------ setting, deleting


def test_setting_an_attribute_is_a_call(handler: CallbacksHandler, proxy: Any, run: Run) -> None:
    held = shut(proxy, run)
    proxy.config.lr = 0.1
    proxy.config.model.width = 16
    assert run.config.lr == 1.0
    run.opened.set()
    held.wait()
    handler.flush()
    assert (run.config.lr, run.config.model.width) == (0.1, 16)


def test_the_value_that_is_set_is_captured(handler: CallbacksHandler, proxy: Any, run: Run) -> None:
    value = {"a": [1]}
    shut(proxy, run)
    proxy.config.layers = value
    proxy.summary["layers"] = value
    value["a"].append(2)
    run.opened.set()
    handler.flush()
    assert run.config.layers == run.summary["layers"] == {"a": [1]}


def test_an_attribute_reads_as_it_was_set_before_the_lane_has_set_it(
    handler: CallbacksHandler, proxy: Any, run: Run
) -> None:
    shut(proxy, run)
    proxy.config.lr = 0.1
    proxy.config.lr *= 2
    proxy.config.new = 3
    proxy.config.layers = [1]
    proxy.config.layers.append(2)
    proxy.extra = types.SimpleNamespace()
    proxy.extra.depth = 4
    assert (proxy.config.lr, proxy.config.new, proxy.extra.depth) == (0.2, 3, 4)
    proxy.extra = types.SimpleNamespace()
    assert isinstance(proxy.extra.depth, Proxy)
    run.opened.set()
    handler.flush()
    assert (run.config.lr, run.config.new, run.config.layers) == (0.2, 3, [1, 2])
    run.config.lr = 5
    assert proxy.config.lr == 5


def test_a_deleted_attribute_is_gone_before_the_lane_has_deleted_it(
    handler: CallbacksHandler, proxy: Any, run: Run
) -> None:
    shut(proxy, run)
    del proxy.config.model
    with pytest.raises(AttributeError, match=r"Run\.config\.model was deleted"):
        _ = proxy.config.model
    assert hasattr(run.config, "model")
    run.opened.set()
    handler.flush()
    assert not hasattr(run.config, "model")


def test_an_attribute_whose_setting_fails_reads_as_before(handler: CallbacksHandler, proxy: Any, run: Run) -> None:
    proxy.lr = -1
    handler.flush()
    assert proxy.lr == 1.0
    assert "lr must be positive" in str(handler.stats().errors[0])


def test_setting_a_method_replaces_it(handler: CallbacksHandler, proxy: Any, run: Run) -> None:
    seen: list[int] = []
    proxy.add(1)
    proxy.add = seen.append
    proxy.add(2)
    handler.flush()
    assert run.calls == [(1,)]
    assert run.add is not None
    assert run.__dict__["add"].__self__ == [2]
    proxy.add = None
    assert proxy.add is None


def test_items_are_set_and_deleted(handler: CallbacksHandler, proxy: Any, run: Run) -> None:
    proxy.summary["best"] = 0.9
    proxy.summary["worst"] = 0.1
    del proxy.summary["worst"]
    proxy.summary.update({"last": 0.5})
    handler.flush()
    assert run.summary == {"best": 0.9, "last": 0.5}
    assert proxy.summary.best == 0.9


def test_what_the_object_can_not_do_fails_by_name(handler: CallbacksHandler, proxy: Any) -> None:
    proxy["a"] = 1
    del proxy.config.nothing
    handler.flush()
    first, second = map(str, handler.stats().errors)
    assert first.startswith("run.__setitem__: TypeError: 'Run' object does not support item assignment")
    assert second.startswith("run.config.__delattr__: AttributeError")


# -------------------------------------------------------------------------------------------------------------- with


class Resource(Sink):
    """Remembers how it was entered and left."""

    def __enter__(self) -> Resource:
        self.calls.append(("enter",))
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        self.calls.append(("exit", kind, str(error) if error else None, traceback))
        return True


class Unwilling(Resource):
    def __enter__(self) -> Resource:
        raise OSError("no such device")


def test_with_enters_and_leaves_in_order(handler: CallbacksHandler) -> None:
    resource = Resource()
    with handler.proxy(resource) as proxy:
        proxy.add(1)
    handler.flush()
    assert resource.calls == [("enter",), (1,), ("exit", None, None, None)]


def test_an_exception_in_the_body_is_told_to_the_object_and_goes_on(handler: CallbacksHandler) -> None:
    resource = Resource()
    with pytest.raises(ValueError, match="body"), handler.proxy(resource):
        raise ValueError("body")
    handler.flush()
    assert resource.calls == [("enter",), ("exit", ValueError, "body", None)]


def test_what_could_not_be_entered_is_not_left(handler: CallbacksHandler) -> None:
    resource = Unwilling()
    with handler.proxy(resource) as proxy:
        proxy.add(1)
    assert handler.flush().failed == 2
    assert resource.calls == [(1,)]


def test_entering_and_leaving_are_never_dropped(handler: CallbacksHandler) -> None:
    class Slow(Gate, Resource):
        pass

    slow = Slow()
    proxy = handler.proxy(slow, queue_size=2, overflow="drop_oldest")
    shut(proxy, slow)
    with proxy:
        for number in range(5):
            proxy.add(number)
    slow.opened.set()
    handler.flush()
    assert slow.calls == [("enter",), (4,), ("exit", None, None, None)]


def test_with_nests(handler: CallbacksHandler) -> None:
    resource = Resource()
    proxy = handler.proxy(resource)
    with proxy, proxy:
        pass
    handler.flush()
    assert [call[0] for call in resource.calls] == ["enter", "enter", "exit", "exit"]


def test_with_on_a_call_enters_what_it_returned(handler: CallbacksHandler) -> None:
    entered: list[Any] = []

    @contextlib.contextmanager
    def opened(name: str) -> Iterator[types.SimpleNamespace]:
        space = types.SimpleNamespace(name=name, items={})
        entered.append(space)
        yield space
        space.closed = True

    proxy = handler.proxy(opened)
    with proxy("a") as space:
        space.items["x"] = 1
        space.lr = 0.1
        name: Any = space.name
    handler.proxy(entered.append, lane="opened", name="append")(name)
    handler.flush()
    assert vars(entered[0]) == {"name": "a", "items": {"x": 1}, "lr": 0.1, "closed": True}
    assert entered[1] == "a"
    assert repr(name) == "<proxy of opened.__call__().name, lane opened>"


def test_with_on_a_call_that_failed_does_nothing_but_fail(handler: CallbacksHandler) -> None:
    with handler.proxy(Sink()).fail() as nothing:
        nothing.use()
    assert handler.flush().failed == 4  # the call, entering, use(), leaving
    assert {type(failure.error) for failure in handler.stats().errors} == {OSError}


def test_with_on_an_object_whose_enter_returns_another_fails_by_name(handler: CallbacksHandler) -> None:
    closed: list[str] = []
    target = contextlib.closing(types.SimpleNamespace(close=lambda: closed.append("closed")))
    with handler.proxy(target, on_error="raise_at_end"):
        pass
    with pytest.raises(LaneError, match=r"closing\.__enter__ returns another object.*with make\(\.\.\.\) as x"):
        handler.close()
    assert closed == ["closed"]


def test_with_on_what_is_no_context_manager_fails_by_name(handler: CallbacksHandler) -> None:
    with handler.proxy(Sink(), on_error="raise_at_end"):
        pass
    with pytest.raises(LaneError, match="'Sink' has no attribute '__enter__'"):
        handler.close()


# ------------------------------------------------------------------------------------------------------------ factory


def test_an_object_of_a_factory_is_never_touched_off_its_lane(handler: CallbacksHandler) -> None:
    made: list[Run] = []

    def make() -> Run:
        made.append(Run())
        return made[0]

    proxy = handler.proxy(factory=make)
    assert made == []
    proxy.add(1).wait()
    assert isinstance(proxy.url, Proxy)
    assert made[0].reads == 0
    assert isinstance(proxy.name, Proxy)


def test_attributes_and_items_of_a_factory_s_object_are_set(handler: CallbacksHandler) -> None:
    made: list[Run] = []
    proxy = handler.proxy(factory=lambda: made.append(Run()) or made[0])
    proxy.config.lr = 0.1
    proxy.summary["best"] = 1
    proxy.summary["url"] = proxy.url
    handler.flush()
    assert made[0].config.lr == 0.1
    assert made[0].summary == {"best": 1, "url": "https://example.org/7"}


def test_a_misspelt_method_of_a_factory_s_object_fails_on_its_lane(handler: CallbacksHandler) -> None:
    with pytest.raises(AttributeError, match="'Run' object has no attribute 'ad'"):
        handler.proxy(factory=Run).ad(1).wait()


def test_a_factory_that_fails_is_tried_again_by_the_next_call(handler: CallbacksHandler) -> None:
    attempts: list[int] = []

    def make() -> Sink:
        attempts.append(len(attempts))
        if len(attempts) < 3:
            raise OSError("no connection")
        return Sink()

    proxy = handler.proxy(factory=make)
    for _ in range(2):
        with pytest.raises(OSError, match="no connection"):
            proxy.add(1).wait()
    assert proxy.add(2).wait() == (2,)
    assert proxy.add(3).wait() == (3,)
    assert len(attempts) == 3


# ---------------------------------------------------------------------------------------- proxies given to each other


def test_a_proxy_given_to_a_call_of_its_own_lane_is_the_object(handler: CallbacksHandler) -> None:
    run, sink = Run(), Sink()
    proxy = handler.proxy(run, lane="shared")
    handler.proxy(sink, lane="shared").add(proxy, [proxy.summary])
    handler.flush()
    assert sink.calls == [(run, [run.summary])]


def test_a_proxy_given_to_a_call_of_another_lane_stays_a_proxy(handler: CallbacksHandler) -> None:
    first, second = Sink(), Sink()
    proxy = handler.proxy(first, name="first")
    handler.proxy(lambda sink: sink.add("from the other lane"), name="second")(proxy)
    handler.proxy(second, name="third").add(proxy)
    handler.flush()
    handler.flush()  # what the lane "second" has called
    assert first.calls == [("from the other lane",)]
    assert second.calls[0][0] is proxy


def test_calls_return_handles(proxy: Any) -> None:
    assert type(proxy.add(1)) is Handle
    assert type(proxy.set_best(1)) is Handle
