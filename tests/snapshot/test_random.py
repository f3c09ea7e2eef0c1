"""Law 9: capturing and opening draw nothing from the global generators."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from async_trainer.snapshot import Memo, Scope, keep, open_value, size, take
from tests.kinds import KINDS, Case
from tests.nets import NETS, seeded


def streams() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), (kind, keys.tolist(), *rest), torch.get_rng_state().tolist()


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_the_streams_are_where_they_were_after_any_value(case: Case) -> None:
    live = case.make()
    before = streams()
    size(live)
    scope = Scope()
    keep(open_value(take(live, Memo(), "value"), scope))
    scope.close()
    assert streams() == before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETS)
def test_the_streams_are_where_they_were_after_any_model(name: str) -> None:
    live = seeded(NETS[name][0])
    before = streams()
    open_value(take(live, Memo(), "model"), Scope())
    assert streams() == before


def test_a_stream_that_was_drawn_from_is_seen_to_differ() -> None:
    before = streams()
    with torch.random.fork_rng():
        torch.rand(1)
        assert streams() != before
