"""Big tensors: into warm buffers, at once; or, where a fence guards them, while the training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from async_trainer.snapshot.buffers import Pooled
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.transfer import copy_all

if TYPE_CHECKING:
    from async_trainer.snapshot.fence import Fence
    from async_trainer.snapshot.sealed import SealedLeaf
    from async_trainer.snapshot.shared import Block
    from async_trainer.snapshot.states import SealedState

Entry = tuple["SealedLeaf", torch.Tensor, int, "Fence | None", str]
"""What seals a tensor, the live tensor, its bytes, the fence that guards it, and the argument that it is part of."""
States = tuple["SealedState", list[torch.Tensor], int, "Fence", str]
"""The same of all tensors of an optimizer's state, which is sealed as a whole."""


def copy_states(states: Sequence[States], memo: Memo) -> list[Entry]:
    """Have optimizers' states copied while the training goes on; those that can't be are returned, tensor by tensor.
    TRAINING THREAD."""
    rest: list[Entry] = []
    for sealed, tensors, nbytes, fence, argument in states:
        if memo.store is None or memo.block is not None or fence.stepping:
            rest += [(leaf, live, live.nbytes, fence, argument) for leaf, live in sealed.leaves()]
            continue
        memo.expecting.add(fence)
        memo.store.transfer(memo).add_state(sealed, tensors, nbytes, argument)
        memo.nbytes += nbytes
    return rest


def copy_big(entries: Sequence[Entry], memo: Memo) -> list[Entry]:
    """Copy what fits into buffers; the rest is returned. TRAINING THREAD.

    Args:
        entries: the tensors; copies of those that a fence guards are made while the training goes on.
        memo: the event's.
    """
    store = memo.store
    if store is None:
        return list(entries)
    rest: list[Entry] = []
    guarded: list[Entry] = []
    now: list[tuple[torch.Tensor, torch.Tensor, str]] = []
    with torch.inference_mode(False):
        for entry in entries:
            sealed, live, nbytes, fence, argument = entry
            plain = type(live) in PLAIN and _has_plain_memory(live)
            later = fence is not None and not fence.stepping and not live.is_inference()
            if later and plain and memo.block is None and live.is_contiguous():
                guarded.append(entry)
                continue
            shared = in_block(memo.block, live) if plain and memo.block is not None else None
            buffer = shared if shared is not None else store.buffer(live, memo.used) if plain else None
            if buffer is None:
                rest.append(entry)
                continue
            if fence is None or not later:
                now.append((buffer, live, argument))
            else:
                store.transfer(memo).add(buffer, live, argument)
                memo.expecting.add(fence)
            sealed.copied = buffer
            if shared is not None and memo.block is not None:
                memo.hold(memo.block.view, nbytes)
                continue
            memo.buffers.append(Pooled(buffer, nbytes))
            memo.nbytes += nbytes
    if guarded:
        memo.expecting.update([entry[3] for entry in guarded if entry[3] is not None])
        memo.nbytes += store.transfer(memo).add_sealed(guarded)
    if now:
        copy_all(now)
    return rest


def in_block(block: Block, live: torch.Tensor) -> torch.Tensor | None:
    """Room for a copy of ``live`` in memory that a child process sees, with its strides; None: there is none."""
    if not (live.is_contiguous() or (live.ndim == 4 and live.is_contiguous(memory_format=torch.channels_last))):
        return None
    place = block.take(live.nbytes)
    if place is None:
        return None
    flat = torch.frombuffer(block.view, dtype=live.dtype, count=live.numel(), offset=place)
    return flat.as_strided(live.shape, live.stride())


def _has_plain_memory(live: torch.Tensor) -> bool:
    return live.is_cpu and live.layout is _strided and not (live.is_nested or live.is_quantized)


_strided = torch.strided
PLAIN: tuple[Any, ...] = (torch.Tensor, torch.nn.Parameter)
