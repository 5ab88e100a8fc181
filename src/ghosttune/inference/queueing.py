"""One queue and one worker: requests wait in line, and whoever leaves gives up the place."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Full(Exception):
    """Nobody else can wait."""


class Closed(Exception):
    """The worker does nothing more."""


class Job:
    """Something to be done by the worker; `tell` hears what it tells, and last its result or its exception."""

    def __init__(self, work: Callable[[Job], Any], tell: Callable[[str, Any], None]):
        self.work = work
        self.tell = tell
        self._left = threading.Event()

    @property
    def left(self) -> bool:
        """Whether nobody waits for it any more; the work looks at this and ends early."""
        return self._left.is_set()

    def leave(self) -> None:
        self._left.set()


class Worker:
    """Does one job after the other in a thread of its own, called `name`; at most `places` wait."""

    def __init__(self, name: str, places: int):
        self.places = places
        self.busy = False
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._current: Job | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether another job would have no place; the one to be done next waits for nobody."""
        return len(self._waiting) + self.busy > self.places

    def submit(self, job: Job) -> None:
        """Puts the job at the end of the line; Full when there is no place, Closed when it would never be done."""
        with self._changed:
            if self._closing:
                raise Closed
            if self.is_full:
                raise Full
            self._waiting.append(job)
            self._changed.notify()

    def withdraw(self, job: Job) -> None:
        """Frees the job's place in the line, or ends it early where it is being done."""
        with self._changed:
            job.leave()
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self, seconds: float = 10) -> None:
        """Ends the job at hand early, tells the others Closed, and waits for the thread at most so long."""
        with self._changed:
            self._closing = True
            for job in self._waiting:
                job.tell("error", Closed())
            self._waiting.clear()
            if self._current is not None:
                self._current.leave()
            self._changed.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.tell("result", job.work(job))
            except Exception as error:  # told to whoever waits; the worker goes on with the next
                job.tell("error", error)
            except BaseException as panic:  # of Rust: whoever waits must hear of it as of any other
                job.tell("error", RuntimeError(f"{type(panic).__name__}: {panic}"))

    def _next(self) -> Job | None:
        with self._changed:
            self.busy, self._current = False, None
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if self._closing:
                return None
            self.busy, self._current = True, self._waiting.popleft()
            return self._current
