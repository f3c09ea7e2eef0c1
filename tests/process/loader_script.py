"""A training loop whose batches come from worker processes, beside a process lane. Prints what the lane got."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from async_trainer import CallbacksHandler, background


class Sums:
    def __init__(self) -> None:
        self.rows: list[float] = []
        self.pid = 0

    def on_batch_end(self, *, batch: torch.Tensor) -> None:
        self.pid = os.getpid()
        self.rows.append(float(batch.sum()))


sums = Sums()
context = sys.argv[1]
handler = CallbacksHandler([background(sums, placement="process")])
data = TensorDataset(torch.arange(8.0))
for _ in range(2):  # the second time, workers are forked while the lane's threads run
    for (batch,) in DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context=context):
        handler.call_event("on_batch_end", batch=batch)
if len(sys.argv) > 2:
    handler.flush()
    print("PID", sums.pid, flush=True)
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context=context, persistent_workers=True)
    for _ in loader:  # all of it: torch's workers end with a parent that they have seen alive, only
        pass
    os.kill(os.getpid(), 9)  # its workers, which were forked, are still there
report: Any = handler.close()
print("ROWS", sums.rows, report.delivered, sums.pid, flush=True)
