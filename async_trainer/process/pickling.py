"""Values between a process and its child, as pickles: big ones go through shared memory, and are not copied again.

Pickles are only read from the socket to a child that was started here, or to the parent that has started this.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

import cloudpickle
from cloudpickle.cloudpickle import _dynamic_class_reduce

from async_trainer.errors import CaptureError
from async_trainer.process.elsewhere import parts_of, remade, said_by
from async_trainer.process.frames import PROTOCOL
from async_trainer.process.remade import (
    defined,
    parametrized_class,
    remade_parameter,
    remade_shared,
    remade_small,
    view_of,
)
from async_trainer.snapshot import SMALL
from async_trainer.snapshot.attributes import fields_of, filled_slots
from async_trainer.snapshot.shared import Block, Segments

PARAMETRIZE = "torch.nn.utils.parametrize"
REMEDY = "capture what you need of it, with select={name: function}, or use placement='thread'"


class ByValue(cloudpickle.Pickler):  # type: ignore[misc]
    """As cloudpickle's, and what is of a module that another process can't find (loaded from a path, made by hand)
    goes by value, too."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is types.FunctionType and not findable(obj.__module__):
            return self._dynamic_function_reduce(obj)
        if isinstance(obj, type) and not findable(obj.__module__):
            return _dynamic_class_reduce(obj)
        return super().reducer_override(obj)


def dumps(subject: Any, pickler: type[ByValue] = ByValue) -> bytes:
    """The pickle of something that is sent once, whatever its class."""
    file = io.BytesIO()
    pickler(file, PROTOCOL).dump(subject)
    return file.getvalue()


@functools.cache
def findable(module: Any) -> bool:
    """Whether another process with this one's ``sys.path`` can import ``module``."""
    if not isinstance(module, str) or module == "__main__" or module in sys.builtin_module_names:
        return True  # cloudpickle sees to __main__
    parent, _, _ = module.rpartition(".")
    if parent and not findable(parent):
        return False
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    if parent and path is None:
        return True  # some attribute of its parent, put into sys.modules
    for finder in sys.meta_path:
        try:
            if finder.find_spec(module, path) is not None:
                return True
        except Exception:  # a finder that some library has put there
            continue
    return False


class Definitions:
    """Classes and functions that the child can't import (those of ``__main__``, lambdas): each is sent once.

    Attributes:
        fresh: the number and the pickle of those that have not been sent yet.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, int | None] = {}
        self._held: list[object] = []  # so that no id is used twice
        self.fresh: list[tuple[int, bytes]] = []

    def number(self, value: Any) -> int | None:
        """How the child calls it; None: by its name, which it can import."""
        key = getattr(value, "__code__", value)  # lambdas are made anew, their code is not
        try:
            return self._numbers[id(key)]
        except KeyError:
            pass
        number = None if _importable(value) else len(self._held)
        pickled = None if number is None else dumps(Recipe.of(value) or value)
        self._numbers[id(key)] = number
        self._held.append(key)
        if number is not None and pickled is not None:
            self.fresh.append((number, pickled))
        return number

    def take_fresh(self) -> list[tuple[int, bytes]]:
        """Those that are to be sent before whatever refers to them."""
        fresh, self.fresh = self.fresh, []
        return fresh


class Recipe:
    """In a pickle, in the place of a class that is made by a function: the child calls it, too."""

    def __init__(self, make: Callable[..., type], *args: Any) -> None:
        self.parts = make, args

    def __reduce__(self) -> tuple[Callable[..., type], tuple[Any, ...]]:
        return self.parts

    @classmethod
    def of(cls, value: Any) -> Recipe | None:
        """That of ``value``; None: it is no such class."""
        if not isinstance(value, type):
            return None
        if "_view_recipe" in vars(value):
            from async_trainer.snapshot.views import view_class

            return cls(view_class, *vars(value)["_view_recipe"])
        if value.__module__ == PARAMETRIZE and value.__base__ is not None and value.__name__.startswith("Parametrized"):
            names = tuple(name for name, held in vars(value).items() if isinstance(held, property))
            return cls(parametrized_class, value.__base__, names) if names else None
        return None


def _importable(value: Any) -> bool:
    module = getattr(value, "__module__", None)
    if not isinstance(module, str) or module == "__main__" or module.startswith("__mp_main__") or not findable(module):
        return False
    by_value = cloudpickle.list_registry_pickle_by_value()
    if any(module == name or module.startswith(f"{name}.") for name in by_value):
        return False
    found: Any = sys.modules.get(module)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value


class Packer(ByValue):
    """Pickles values, one after the other, each on its own.

    Args:
        definitions: what the other end knows of; None: classes that it can't import are sent each time.
        segments: where big values go; None: with the rest.

    Attributes:
        parts: of segments, that the last pickle refers to.
    """

    def __init__(self, definitions: Definitions | None = None, segments: Segments | None = None) -> None:
        self._file = io.BytesIO()
        self.dispatch_table = dict(cloudpickle.Pickler.dispatch_table)  # a ChainMap, which takes longer
        super().__init__(self._file, PROTOCOL, buffer_callback=self._big_buffer if segments is not None else None)
        self._definitions = definitions
        self._segments = segments
        self._block: Block | None = None
        self.parts: list[SharedPart] = []
        self._part: SharedPart | None = None  # that of the block
        self._buffers: list[SharedPart] = []
        self._as_it_is: set[type] = set()

    def pack(self, value: Any, block: Block | None = None) -> tuple[bytes, list[SharedPart]]:
        """The pickle of ``value``, and the parts of segments that are its out-of-band buffers.

        Args:
            value: what to send.
            block: where big tensors of it are already.

        Raises:
            Exception: it, or something in it, can't be pickled.
        """
        self._block = block
        self.parts, self._buffers, self._part = [], [], None
        self._file.seek(0)
        self._file.truncate()
        try:
            pickle.Pickler.dump(self, value)
        except BaseException:
            for part in self.parts:
                part.let_go()
            self.parts = []
            raise
        finally:
            self.clear_memo()  # it holds all that was pickled
            self._block = self._part = None
        return self._file.getvalue(), self._buffers

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        if cls in self._as_it_is:
            return NotImplemented
        if cls is types.FunctionType or isinstance(obj, type):
            return self._named(obj)
        if isinstance(obj, BaseException):
            return remade, parts_of(obj)
        torch: Any = sys.modules.get("torch")
        if torch is not None and isinstance(obj, torch.Tensor):
            return self._tensor(obj, torch)
        refuse_live_things(obj, torch)
        if cls is not types.CellType:
            self._as_it_is.add(cls)
        return NotImplemented

    def _named(self, obj: Any) -> Any:
        holds_values = not isinstance(obj, type) and (obj.__closure__ or obj.__defaults__ or obj.__kwdefaults__)
        if self._definitions is None or holds_values:
            recipe = Recipe.of(obj)
            return super().reducer_override(obj) if recipe is None else recipe.__reduce__()
        number = self._definitions.number(obj)
        return NotImplemented if number is None else (defined, (number,))

    def _tensor(self, live: Any, torch: Any) -> Any:
        if type(live) is torch.nn.Parameter:
            return remade_parameter, (live.detach(), live.requires_grad)
        strided = type(live) is torch.Tensor and live.layout is torch.strided and live.device.type == "cpu"
        if not strided or live.is_quantized or live.is_nested or live.is_conj() or live.is_neg() or live.__dict__:
            return NotImplemented
        if live.requires_grad:
            live = live.detach()
        if not _is_dense(live):
            live = live.contiguous()
        how = (live.dtype, tuple(live.shape), live.stride())
        block = self._block
        if block is not None and live.numel():
            place = live.data_ptr() - block.address
            if 0 <= place < len(block.view):
                if self._part is None:
                    self._part = self._share(block)
                return remade_shared, (self._part, place, *how)
        flat = live.as_strided((live.numel(),), (1,), live.storage_offset())
        if self._segments is not None and live.nbytes > SMALL:
            fresh = self._fresh_block(live.nbytes)
            if fresh is not None:
                torch.frombuffer(fresh.view, dtype=live.dtype, count=live.numel()).copy_(flat)
                return remade_shared, (self._share(fresh), 0, *how)
        held = bytes(flat.view(torch.uint8).numpy().data) if live.numel() else b""
        return remade_small, (held, *how)

    def _big_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Whether to send it with the rest."""
        import numpy as np

        raw = buffer.raw()
        block = self._block
        if block is not None and raw.nbytes > SMALL:
            place = np.frombuffer(raw, np.uint8).ctypes.data - block.address
            if 0 <= place < len(block.view):
                part = self._share(block)
                part.start, part.nbytes = block.start + place, raw.nbytes
                self._buffers.append(part)
                return False
        fresh = self._fresh_block(raw.nbytes) if raw.nbytes > SMALL else None
        if fresh is None:
            return True
        np.copyto(np.frombuffer(fresh.view, np.uint8, raw.nbytes), np.frombuffer(raw, np.uint8))
        part = self._share(fresh)
        part.nbytes = raw.nbytes
        self._buffers.append(part)
        return False

    def _fresh_block(self, nbytes: int) -> Block | None:
        assert self._segments is not None
        try:
            return self._segments.block(nbytes)
        except OSError:
            return None

    def _share(self, block: Block) -> SharedPart:
        assert self._segments is not None
        part = SharedPart(self._segments, block)
        self.parts.append(part)
        return part


def _is_dense(live: Any) -> bool:
    """Whether its elements fill a piece of memory without gaps, each once, in whatever order."""
    if live.is_contiguous():
        return True
    wanted = 1
    for stride, length in sorted(zip(live.stride(), live.shape, strict=True)):
        if length != 1:
            if stride != wanted:
                return False
            wanted *= length
    return True


class SharedPart:
    """A part of a segment that is on its way to a child; there, the view of it."""

    def __init__(self, segments: Segments, block: Block) -> None:
        self.segments = segments
        self.segment = block.segment
        self.start = block.start
        self.nbytes = len(block.view)
        segments.use(block.segment)

    def let_go(self) -> None:
        """It is not sent after all."""
        self.segments.let_go(self.segment)

    @property
    def where(self) -> tuple[int, int, int]:
        """The number of its segment, where it starts, and its bytes."""
        return self.segment.number, self.start, self.nbytes

    def __reduce__(self) -> tuple[Any, ...]:
        return view_of, self.where


def refuse_live_things(obj: Any, torch: Any) -> None:
    """What belongs to the training, and would be of no use elsewhere."""
    if torch is None:
        return
    data = torch.utils.data
    if isinstance(obj, (data.DataLoader, data.Sampler, data.Dataset)) or getattr(type(obj), "stays_here", False):
        raise CaptureError(f"a {type(obj).__name__} can't be sent to a process: {REMEDY}")


def pack_error(error: BaseException, text: str) -> tuple[str, str, bytes | None]:
    """An error, for an end that may not know its class: what it says, its traceback, and its pickle if it has one."""
    try:
        pickled, _ = Packer().pack((remade, parts_of(error, text)))
    except Exception:
        return said_by(error), text, None
    return said_by(error), text, pickled


def pack_result(result: Any) -> tuple[str, bytes | None]:
    """The pickle of what a call has returned; where it can't be sent, why."""
    try:
        return "", Packer().pack(result)[0]
    except Exception as error:
        return f"{type(result).__name__}: {error}", None


def pickled_attributes(callback: Any) -> dict[str, bytes]:
    """The attributes of a callback that can be sent back."""
    pickled: dict[str, bytes] = {}
    slots = [(slot.__name__, value) for slot, value in filled_slots(callback)]
    for name, value in [*(fields_of(callback) or {}).items(), *slots]:
        try:
            pickled[name] = Packer().pack(value)[0]
        except Exception:  # a file, a connection: it stays here
            continue
    return pickled
