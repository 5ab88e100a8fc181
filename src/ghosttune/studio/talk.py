"""Answers of a run and of its untouched base side by side, and the rows behind an answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from ghosttune.data.columns import RowFault
from ghosttune.data.messages import turns_of_messages
from ghosttune.data.turns import Turn
from ghosttune.errors import InputError
from ghosttune.run.directory import RunDir
from ghosttune.studio.folder import Folder
from ghosttune.studio.measured import measure

LONGEST = 512
"""Tokens of an answer at most."""

Tell = Callable[[str, str], bool]
"""Hears who speaks, `adapter` or `base`, and the next piece of text, which may be empty; True ends the answers."""


class Talk:
    """The model that is open, one at a time; who asks another run closes it. Everything here takes its turn."""

    def __init__(self, device: str = "auto"):
        self.device = device
        self._turn = threading.Lock()
        self._path = ""
        self._pipeline: Any = None
        self._opened: Any = None

    def answers(self, run: RunDir, asked: Sequence[Turn], max_new_tokens: int, tell: Tell) -> dict[str, Any]:
        """{memory_mb}, once `tell` has heard what the adapter says next, and then the untouched base, greedily."""
        with self._turn:
            if tell("adapter", ""):
                return {}
            self._open(run)
            if self._pipeline is None:
                from ghosttune.inference.pipeline import Pipeline

                self._pipeline = Pipeline.open(run.path, self.device)
            for who in ("adapter", "base") if self._pipeline.has_adapter else ("adapter",):
                reply = self._pipeline.reply(
                    asked, max_new_tokens=max_new_tokens, adapter=who == "adapter", tell=partial(tell, who)
                )
                if reply.ended == "interrupted":
                    break
            return {"memory_mb": memory_mb()}

    def why(self, run: RunDir, messages: Any, answer: str, top: int = 5) -> dict[str, Any]:
        """The training rows that made the answer more and less likely, the first with its tokens.

        Rows of a run that was not indexed are indexed first, which takes a pass over all of them.
        """
        from ghosttune.choosing.attribute import why

        turns = asked_in(messages)
        with self._turn:
            opened = self._of_rows(run)
            self._index(opened)
            found = why(opened, turns, answer, top=top, tokens=True)
        return {**asdict(found), "memory_mb": memory_mb()}

    def tokens(self, run: RunDir, example_id: str) -> list[dict[str, Any]]:
        """What each target token of a training row does for the guide rows, at the last checkpoint."""
        from ghosttune.choosing.tokens import guide_shares

        with self._turn:
            return [asdict(share) for share in guide_shares(self._of_rows(run), [example_id])[example_id]]

    def measure(self, folder: Folder, run: RunDir, what: str) -> int:
        """Keeps this number of the training rows (`studio.measured`) and says how many have it."""
        with self._turn:
            opened = self._of_rows(run)
            if what != "loss":
                self._index(opened)
            return measure(folder, run, opened, what)

    def _index(self, opened: Any) -> None:
        """Indexes the training rows, unless they are."""
        from ghosttune.choosing.index import index

        (step,) = opened.steps(["best"])
        if not opened.run.store("train", step).exists():
            index(opened.run.path, device=self.device)

    def _of_rows(self, run: RunDir) -> Any:
        from ghosttune.choosing.opened import OpenedRun

        self._open(run)
        if self._opened is None:
            self._opened = OpenedRun(run.path, self.device)
        return self._opened

    def _open(self, run: RunDir) -> None:
        if str(run.path) != self._path:
            self._path, self._pipeline, self._opened = str(run.path), None, None

    def close(self) -> None:
        """Lets go of the model."""
        self._path, self._pipeline, self._opened = "", None, None


def asked_in(messages: Any) -> Sequence[Turn]:
    """The turns that end with a question; InputError for anything else."""
    if not isinstance(messages, list) or not messages:
        raise InputError("messages must be a list that ends with the user's question")
    try:
        turns = turns_of_messages({"messages": [*messages, {"role": "assistant", "content": "…"}]})
    except RowFault as fault:
        raise InputError(str(fault)) from fault
    return turns[:-1]


def memory_mb() -> float:
    """What this process holds now."""
    import psutil

    return round(psutil.Process().memory_info().rss / 2**20, 1)
