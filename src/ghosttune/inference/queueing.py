"""One line and one worker: requests wait in order, and whoever leaves gives up the place."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any


class Full(Exception):
    """Nobody else can wait."""


class Closed(Exception):
    """The worker does nothing more."""


class Job:
    """Something to be done by the worker; `tell` hears what it tells, and last its result or its exception."""

    places = 1
    """Of those jobs that are done together."""

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

    def do(self) -> None:
        """Does the work, and tells its result or its error."""
        try:
            self.tell("result", self.work(self))
        except Exception as error:  # told to whoever waits; the worker goes on with the next
            self.tell("error", error)
        except BaseException as panic:  # of Rust: whoever waits must hear of it as of any other
            self.tell("error", RuntimeError(f"{type(panic).__name__}: {panic}"))


class Line:
    """Jobs that wait, at most `waiting` of them, for one of `together` places to be done in."""

    def __init__(self, waiting: int, together: int = 1):
        self.most, self.together = waiting, together
        self.current: list[Job] = []
        self.closing = False
        self.ending = False
        """Whether nobody else is taken in."""
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """Places that are taken."""
        return sum(job.places for job in self.current)

    @property
    def is_full(self) -> bool:
        """Whether another job would have no place; those that are done next wait for nobody."""
        free = self.together - self.busy
        next_ = self._fitting(free)
        behind = len(self._waiting) - len(next_)
        return behind >= self.most and (behind > 0 or free <= sum(job.places for job in next_))

    def add(self, job: Job) -> None:
        """Puts the job at the end; Full when there is no place, Closed when it would never be done."""
        with self._changed:
            if self.ending or self.closing:
                raise Closed
            if self.is_full:
                raise Full
            self._waiting.append(job)
            self._changed.notify_all()

    def take(self) -> list[Job]:
        """The jobs whose turn it is, which are current from then on; waits while there is nothing at all to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.current or self.closing)
            taken = [] if self.closing else self._fitting(self.together - self.busy)
            for job in taken:
                self._waiting.remove(job)
            self.current += taken
            return taken

    def done(self, job: Job) -> None:
        with self._changed:
            self.current.remove(job)
            self._changed.notify_all()

    def withdraw(self, job: Job) -> None:
        """Frees the job's place in the line, or ends it early where it is being done."""
        with self._changed:
            job.leave()
            if job in self._waiting:
                self._waiting.remove(job)
                self._changed.notify_all()

    def drain(self, seconds: float, hurried: Callable[[], bool]) -> None:
        """Takes nobody else in, and waits until all are done, at most so long, and not once `hurried`."""
        until = time.monotonic() + seconds
        with self._changed:
            self.ending = True
            while (self._waiting or self.current) and time.monotonic() < until and not hurried():
                self._changed.wait(0.1)

    def close(self) -> None:
        """Tells those who wait Closed, and ends what is being done early."""
        with self._changed:
            self.closing = True
            for job in self._waiting:
                job.tell("error", Closed())
            self._waiting.clear()
            for job in self.current:
                job.leave()
            self._changed.notify_all()

    def _fitting(self, free: int) -> list[Job]:
        """The first of those who wait, as far as there are places for them."""
        found: list[Job] = []
        for job in self._waiting:
            if job.places > free:
                break
            free -= job.places
            found.append(job)
        return found


class Worker:
    """Does one job after the other in a thread of its own, called `name`; at most `waiting` wait."""

    def __init__(self, name: str, waiting: int, together: int = 1):
        self.line = Line(waiting, together)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def close(self, seconds: float = 10) -> None:
        """Ends what is at hand early, tells the others Closed, and waits for the thread at most so long."""
        self.line.close()
        self._thread.join(seconds)

    def _work(self) -> None:
        while not self.line.closing:
            for job in self.line.take():
                job.do()
                self.line.done(job)
