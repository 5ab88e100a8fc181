"""The training rows behind the answers of a run that is served."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ghosttune.choosing.attribute import Attribution, Influence, why
from ghosttune.choosing.opened import TRAIN, OpenedRun, best_step
from ghosttune.data.turns import Turn
from ghosttune.run.directory import RunDir


class RunReasons:
    """`why` of one run or model. The run is opened when it is asked first: its rows, and its model once more."""

    def __init__(self, run_or_model: str, device: str = "auto", trust_remote_code: bool = False):
        self._name, self._how = run_or_model, (device, trust_remote_code)
        self.why_not = why_not(run_or_model)
        """Why nothing can be said; None where it can, as far as that is seen without opening the run."""

    def explain(self, turns: Sequence[Turn], answer: str, top: int) -> dict[str, Any]:
        """The rows that most raised and lowered the likelihood of the answer, as JSON has them."""
        return _told(why(self._opened, turns, answer, top, tokens=True))

    @cached_property
    def _opened(self) -> OpenedRun:
        return OpenedRun(self._name, *self._how)


def why_not(run_or_model: str) -> str | None:
    """Why no rows can be named behind an answer; None where they can. Reads no rows and no weights."""
    run = RunDir(run_or_model)
    if not run.exists:
        return f"{Path(run_or_model).name} is a model and no run: no training rows are known"
    step = best_step(run)
    if step is None or not run.store(TRAIN, step).exists():
        return f"the gradients of its training rows are not kept: `ghosttune index {run_or_model}`, then serve again"
    return None


def _told(found: Attribution) -> dict[str, Any]:
    return {
        "by": found.by,
        "checkpoints": found.checkpoints,
        "rows": found.rows,
        "helpful": [_row(row) for row in found.helpful],
        "harmful": [_row(row) for row in found.harmful],
        "tokens": [
            {"example_id": one.example_id, "row": [{"text": s.text, "share": s.share} for s in one.row]}
            for one in found.tokens
        ],
    }


def _row(row: Influence) -> dict[str, Any]:
    return {"example_id": row.example_id, "score": row.score, "error": row.error, "content": row.content}
