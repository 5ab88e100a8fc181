"""Who is answered next: answers join the running batch as places are free, and every other job is done in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ghosttune.inference.batching import RunningBatch
from ghosttune.inference.queueing import Job, Worker
from ghosttune.inference.streaming import Writing


class Answers(Job):
    """Answers to one prompt that are written in a batch; their result is the list of their replies."""

    def __init__(
        self,
        batch: RunningBatch,
        prompt: Sequence[int],
        writings: Sequence[Writing],
        tell: Callable[[str, Any], None],
    ):
        super().__init__(lambda _: batch.join(prompt, self.writings), tell)
        self.batch, self.writings = batch, writings

    @property
    def places(self) -> int:  # type: ignore[override]
        return len(self.writings)

    @property
    def has_ended(self) -> bool:
        return all(writing.has_ended for writing in self.writings)

    def interrupt(self) -> None:
        """Takes out of the batch what is not at its end."""
        self.batch.leave(self.writings)
        for writing in self.writings:
            writing.interrupt()


class Scheduler(Worker):
    """Writes all answers that have a place token by token, and does jobs of other kinds between two tokens.

    A place is an answer's; whoever waits takes the next that is free, in the order of asking.
    """

    def __init__(self, name: str, waiting: int, together: int, stepped: Callable[[int], None]):
        self._stepped = stepped
        """Hears how many answers are about to get a token."""
        super().__init__(name, waiting, together)

    def _work(self) -> None:
        while not self.line.closing:
            for job in self.line.take():
                if isinstance(job, Answers):
                    self._guarded([job], partial(job.work, job))
                else:
                    job.do()
                    self.line.done(job)
            for batch in {id(job.batch): job.batch for job in self._answers}.values():
                self._stepped(len(batch.rows))
                self._guarded([job for job in self._answers if job.batch is batch], batch.step)
        for job in self._answers:
            self._end(job)

    @property
    def _answers(self) -> list[Answers]:
        return [job for job in self.line.current if isinstance(job, Answers)]

    def _guarded(self, jobs: Sequence[Answers], work: Callable[[], None]) -> None:
        """Does this for these jobs, and ends those that are finished, that failed, or that nobody waits for."""
        try:
            work()
        except Exception as error:  # told to whoever waits; the others go on
            self._fail(jobs, error)
        except BaseException as panic:  # of Rust
            self._fail(jobs, RuntimeError(f"{type(panic).__name__}: {panic}"))
        else:
            for job in jobs:
                if job.has_ended or job.left:
                    self._end(job)

    def _end(self, job: Answers) -> None:
        job.interrupt()
        try:
            job.tell("result", [writing.reply() for writing in job.writings])
        except Exception as error:  # a tokenizer's, or of what reads calls
            job.tell("error", error)
        self.line.done(job)

    def _fail(self, jobs: Sequence[Answers], error: Exception) -> None:
        for job in jobs:
            job.batch.leave(job.writings)
            job.tell("error", error)
            self.line.done(job)
