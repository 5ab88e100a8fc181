"""What happens in a run, as its files tell: whoever started it, and wherever."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from ghosttune.errors import InputError
from ghosttune.foreign import read_json
from ghosttune.reports.reading import RunNumbers
from ghosttune.run.directory import RunDir
from ghosttune.studio.runs import settings_of, state_of

News = tuple[str, Any]
"""(kind, what is): `again` (what was told before is void), `events`, `state`, `norms`; `values`: up to which step."""

MOST_COLUMNS = 120
"""Steps of the heat map; more are averaged."""


class Follower:
    """Tells what is new in a run's files since it was last asked. A look costs a few calls to the system."""

    def __init__(self, run: RunDir):
        self.run = run
        self.max_steps = settings_of(run).get("train.max_steps")
        self._file: tuple[int, int] | None = None
        """Of metrics.jsonl: its inode, and up to where it was read."""
        self._step = 0
        self._parts: dict[str, list[str]] = {}
        self._state: dict[str, Any] = {}

    def news(self) -> Iterator[News]:
        """What is new; a file that is being written is read next time."""
        yield from self._events()
        state = self._now()
        if state is not None and {**state, "left": 0} != {**self._state, "left": 0}:
            self._state = state
            yield "state", state
        if self._grew("norms") and (norms := heat_map(self.run)) is not None:
            yield "norms", norms
        if self._grew("ledger"):
            yield "values", int(self._parts["ledger"][-1].removesuffix(".parquet").rpartition("-")[2])

    def _grew(self, table: str) -> bool:
        """Whether a table has parts that it had not when it was last looked at."""
        folder = self.run.table(table)
        parts = sorted(path.name for path in folder.glob("part-*")) if folder.is_dir() else []
        before, self._parts[table] = self._parts.get(table, []), parts
        return bool(parts) and parts != before

    def _events(self) -> Iterator[News]:
        if not self.run.metrics.is_file():
            return
        with open(self.run.metrics, "rb") as file:
            inode, size = _of(file)
            known, place = self._file or (inode, 0)
            if inode != known or size < place:  # a run that is resumed forgets what it will do again
                place = 0
                yield "again", None
            file.seek(place)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._file = (inode, place + len(whole))
        events = [event for line in whole.split(b"\n") if (event := _event(line)) is not None]
        if events:
            self._step = max([0 if place == 0 else self._step, *(event["step"] for event in events)])
            yield "events", events

    def _now(self) -> dict[str, Any] | None:
        try:
            record = self.run.read_record()
        except InputError:
            return None
        state = state_of(self.run, record)
        return {
            "state": state,
            "step": max(self._step, record["step"]),
            "max_steps": self.max_steps,
            "left": self._seconds_left(record) if state == "running" else None,
            "error": record.get("error"),
            "verdict": record.get("verdict"),
            "memory": record.get("peak_memory_mb", {}),
        }

    def _seconds_left(self, record: dict[str, Any]) -> float | None:
        """By the mean of the steps so far; None before the first, and for a run that was resumed."""
        if record.get("resumed") or not self._step or not self.max_steps:
            return None
        gone = time.time() - datetime.fromisoformat(record["started"]).timestamp()
        return gone / self._step * (self.max_steps - self._step)


def _of(file: Any) -> tuple[int, int]:
    import os

    found = os.fstat(file.fileno())
    return found.st_ino, found.st_size


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = read_json(line.decode()) if line else None
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("step"), int) else None


def heat_map(run: RunDir) -> dict[str, Any] | None:
    """{steps, layers, values [layer][step]}: norms of the adapter's gradients by layer; null where frozen."""
    try:
        norms = RunNumbers(run).norms
    except InputError:  # a part is being replaced
        return None
    if norms is None or not norms.layers:
        return None
    thin = norms.thinned(MOST_COLUMNS)
    rows = [[None if value != value else float(value) for value in row] for row in thin.layer_map()]
    return {"steps": thin.steps.tolist(), "layers": thin.layers, "values": rows}


def as_event(kind: str, value: Any) -> str:
    """One server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(value, ensure_ascii=False, default=str)}\n\n"
