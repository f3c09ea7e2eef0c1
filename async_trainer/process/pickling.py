"""Values between a process and its child, as pickles: big ones go through shared memory, and are not copied again.

Pickles are only read from the socket to a child that was started here, or to the parent that has started this.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle
from cloudpickle.cloudpickle import _dynamic_class_reduce

from async_trainer.errors import CaptureError, ElsewhereError, LaneError
from async_trainer.process.frames import PLAIN, PROTOCOL
from async_trainer.snapshot import SMALL
from async_trainer.snapshot.mapped import Mapped
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


# ------------------------------------------------------------------------------------------------------ the other end

mapped = Mapped()
"""The segments of this process's parent. A process is the child of one."""

_definitions: dict[int, bytes | Any] = {}


def define(number: int, pickled: bytes) -> None:
    """The parent is about to refer to a definition."""
    _definitions[number] = cloudpickle.loads(pickled)


def defined(number: int) -> Any:
    """What the parent has defined by that number."""
    return _definitions[number]


def unpack(pickled: bytes, buffers: Sequence[tuple[int, int, int]] = ()) -> Any:
    """The value of a pickle of ``Packer.pack``.

    Raises:
        Exception: a class can't be imported, or what it does when it is made again.
    """
    return pickle.loads(pickled, buffers=[mapped.view(*where) for where in buffers])


def view_of(number: int, start: int, nbytes: int) -> memoryview:
    """A part of a segment."""
    return mapped.view(number, start, nbytes)


def remade_shared(view: memoryview, place: int, dtype: Any, shape: tuple[int, ...], stride: tuple[int, ...]) -> Any:
    """A tensor over shared memory."""
    import torch

    count = 1
    for length in shape:
        count *= length
    flat = torch.frombuffer(view, dtype=dtype, count=count, offset=place)
    return flat if stride == (1,) else flat.as_strided(shape, stride)


def remade_small(held: bytes, dtype: Any, shape: tuple[int, ...], stride: tuple[int, ...]) -> Any:
    """A tensor that came with the rest."""
    import torch

    if not held:
        return torch.empty_strided(shape, stride, dtype=dtype)
    flat = torch.frombuffer(bytearray(held), dtype=dtype)
    return flat.as_strided(shape, stride)


def remade_parameter(data: Any, requires_grad: bool) -> Any:
    """A parameter."""
    import torch

    return torch.nn.Parameter(data, requires_grad)


def parametrized_class(base: Any, names: tuple[str, ...]) -> type:
    """The class of modules of class ``base`` whose ``names`` are parametrized. The other end's own leads to its live
    module, through a closure of a property."""
    from torch import nn
    from torch.nn.utils import parametrize

    from async_trainer.snapshot.attributes import maker_of

    bare = maker_of(base)()
    object.__setattr__(bare, "__dict__", dict(vars(nn.Module())))
    parametrize._inject_new_class(bare)
    for name in names:
        parametrize._inject_property(bare, name)
    return type(bare)


# ------------------------------------------------------------------------------------------------------------- errors


def parts_of(error: BaseException, text: str | None = None) -> tuple[Any, ...]:
    """What ``remade`` makes an error from: its traceback becomes text."""
    if text is None:
        text = "".join(traceback.format_exception(error))
    args = tuple(arg if isinstance(arg, PLAIN) else safe_repr(arg) for arg in error.args)
    extra = {name: held for name, held in vars(error).items() if isinstance(held, PLAIN)}
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else None
    return type(error), args, extra, said_by(error), text, cause


def remade(
    cls: Any, args: tuple[Any, ...], extra: dict[str, Any], said: str, text: str, cause: BaseException | None
) -> BaseException:
    """An error from another process, of its class. Its cause is its own, or else tells its traceback there."""
    made: BaseException
    try:
        made = cls.__new__(cls, *args)
        made.args = args
        made.__dict__.update(extra)
        same = said_by(made) == said
    except Exception:
        same = False
    if not same:
        made = LaneError(said)
    made.__cause__ = cause or ElsewhereError(text)
    made.__dict__["_told_elsewhere"] = text
    return made


def said_by(error: BaseException) -> str:
    """``"OSError: disk full"``, whatever its class does."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def safe_repr(value: object) -> str:
    """What ``value`` looks like, whatever its class does."""
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


def pack_error(error: BaseException, text: str) -> tuple[str, str, bytes | None]:
    """An error, for an end that may not know its class: what it says, its traceback, and its pickle if it has one."""
    try:
        pickled, _ = Packer().pack((remade, parts_of(error, text)))
    except Exception:
        return said_by(error), text, None
    return said_by(error), text, pickled


def unpack_error(said: str, text: str, pickled: bytes | None) -> BaseException:
    """The error of ``pack_error``; if its class isn't known here, one of ours that says the same."""
    if pickled is not None:
        try:
            function, parts = pickle.loads(pickled)
            error: BaseException = function(*parts)
            return error
        except Exception:  # its class can't be imported here
            pass
    return remade(LaneError, (said,), {}, f"LaneError: {said}", text, None)
