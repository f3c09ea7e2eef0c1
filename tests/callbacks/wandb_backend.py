"""As much of a Weights & Biases server as wandb's own client wants of one, to log a run online."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from tests.callbacks.servers import Answer

KEY = "0123456789abcdef0123456789abcdef01234567"


class WandBBackend:
    """Answers for a :class:`~tests.callbacks.servers.Server`.

    Attributes:
        outage: what it answers instead, while it is set; it may wait, or be None's: it hangs.
        refused: set at the first request that was answered so.
        doubled: rows that came twice, and were not the same.
    """

    def __init__(self) -> None:
        self.outage: Callable[[], Answer | None] | None = None
        self.refused = threading.Event()
        self.doubled = 0
        self._rows: dict[str, dict[int, dict[str, Any]]] = {}  # by run: row by number
        self._exit_codes: dict[str, int] = {}

    def losses(self, run_id: str | None) -> list[float]:
        """Of the rows that have one, in order."""
        rows = self._rows.get(run_id or "", {})
        return [rows[number]["loss"] for number in sorted(rows) if "loss" in rows[number]]

    @property
    def runs(self) -> list[str]:
        """Those that have rows."""
        return list(self._rows)

    def exit_code(self, run_id: str | None) -> int | None:
        """Of a run that has ended."""
        return self._exit_codes.get(run_id or "")

    def __call__(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer | None:
        if self.outage is not None:
            self.refused.set()
            answered = self.outage()
            if answered is None or answered[0] >= 400:
                return answered
        if path == "/graphql":
            return as_json({"data": self._data(json.loads(body))})
        if path.endswith("/file_stream"):
            self._take(path.split("/")[-2], json.loads(body))
        return as_json({})

    def _data(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        query, variables = asked["query"], asked.get("variables") or {}
        if "upsertBucket" in query:
            project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}}
            about = {"id": "b", "name": variables["name"], "displayName": "run", "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": about, "inserted": True}}
        if "createRunFiles" in query:
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}
        if "viewer" in query:
            return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        rows = self._rows.get(variables.get("name", ""))
        if "historyLineCount" not in query or not rows:
            return {"model": None}
        last = json.dumps(rows[max(rows)])
        lines = {"historyLineCount": len(rows), "logLineCount": 0, "eventsLineCount": 0}
        tails = {"historyTail": json.dumps([last]), "eventsTail": "[]", "summaryMetrics": last}
        about = {"id": "b", "name": variables["name"], "displayName": "run", "config": "{}", "tags": []}
        known = {**about, **lines, **tails, "wandbConfig": json.dumps({"t": 1})}
        return {"model": {"id": "p", "name": "tests", "entity": {"id": "e", "name": "me"}, "bucket": known}}

    def _take(self, run_id: str, sent: Mapping[str, Any]) -> None:
        history = sent.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        for number, line in enumerate(history["content"], start=history["offset"]):
            row = json.loads(line)
            self.doubled += self._rows.setdefault(run_id, {}).setdefault(number, row) != row
        if sent.get("complete"):
            self._exit_codes[run_id] = sent["exitcode"]


def as_json(content: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()
