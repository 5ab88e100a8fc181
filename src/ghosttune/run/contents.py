"""What the JSON files of a run must hold: whoever reads them takes it for granted, and anybody may have written them.

Only what code relies on is asked for; what else is there is left alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError, model_validator

from ghosttune.errors import RunError

VERDICTS = Literal["better", "worse", "negligible", "not distinguishable"]


class Contents(BaseModel):
    """An object in a file: types as they are written, and room for more."""

    model_config = ConfigDict(strict=True, extra="allow")


class Score(Contents):
    """A value with its 95 % interval over `n` rows."""

    value: float | None
    low: float | None
    high: float | None
    n: NonNegativeInt


class Earned(Contents):
    """What greedy answers to dev prompts earn, where a check rewards them."""

    base: float
    adapter: float
    success_base: float
    success: float
    change: Score


class Judged(Contents):
    """The dev rows of one set."""

    dev_loss_base: float
    dev_loss: float
    change: Score


class Verdict(Contents):
    """Of the finished run."""

    verdict: VERDICTS
    dev_loss_base: float
    dev_loss: float
    change: Score
    best_step: int | None = None
    note: str | None = None
    reward: Earned | None = None
    sources: dict[str, Judged] = {}


class Trained(Contents):
    """The model."""

    name: str
    trainable_parameters: dict[str, int]
    weight_bytes: int | None = None


class Rows(Contents):
    """What was read."""

    fingerprints: dict[str, str]
    rows: dict[str, int]
    tokens: dict[str, int]
    targets: dict[str, int]
    cut_rows: dict[str, list[str]] = {}
    without_reasoning: dict[str, int] = {}
    """Rows with reasoning that the chat template did not write."""


class Environment(Contents):
    """Where it ran."""

    python: str
    packages: dict[str, str]
    git: dict[str, Any] | None = None
    host: dict[str, Any] = {}


class Phases(Contents):
    """From which phase the two adapters come."""

    best: int | None
    last: int | None


class Choosing(Contents):
    """What choosing rows online took."""

    seconds: float


class Weights(Contents):
    """Of one source: those that the run began and ended with."""

    first: float
    last: float


class Learnt(Contents):
    """What was learnt of the weights of a mixture, and what it took."""

    by: str
    seconds: float
    changes: NonNegativeInt
    weights: dict[str, Weights]


class Named(Contents):
    """Rows by the digest of their ids."""

    rows: NonNegativeInt
    sha256: str


class Forgets(Contents):
    """From which run this one starts, and what of it is forgotten."""

    run: str
    adapter: str
    settings: dict[str, Any]
    forgotten: Named
    retained: Named
    start_loss: float


class Order(Contents):
    """By what training rows are sorted."""

    by: str
    first: Literal["smallest", "largest"]
    scores: str
    rows: NonNegativeInt
    smallest: float
    largest: float


class WithoutRule(Contents):
    """Trained tensors that no rule for single rows covers."""

    names: list[str]
    found_in_the_first_pass: dict[str, str] = {}
    measured: str = ""


class Exposed(Contents):
    """Rows of a split that judge, and how many of them were trained on, by kind."""

    rows: NonNegativeInt
    short: NonNegativeInt
    trained: dict[str, NonNegativeInt]


class Overlap(Contents):
    """One of them."""

    split: str
    example_id: str
    kind: str
    train_example_id: str
    share: float


class Overlaps(Contents):
    """Which rows that judge were trained on."""

    splits: dict[str, Exposed]
    named: list[Overlap] = []


class Record(Contents):
    """run.json."""

    ghosttune: str
    status: Literal["running", "stopped", "failed", "finished"]
    step: NonNegativeInt
    started: str
    ended: str = ""
    error: str = ""
    seed: int
    model: Trained
    data: Rows
    left_out: dict[str, int]
    contamination: Overlaps | None = None
    configuration: str
    origins: dict[str, str]
    environment: Environment
    stage_seconds: dict[str, float]
    resumed: list[dict[str, Any]] = []
    processes: int = 1
    best_step: int | None = None
    tokens_per_second: float | None = None
    targets_per_second: float | None = None
    padding_share: float | None = None
    peak_memory_mb: dict[str, float] = {}
    ledger: dict[str, Any] | None = None
    phases: Phases | None = None
    without_rule: WithoutRule | None = None
    online_selection: Choosing | None = None
    mixture: Learnt | None = None
    forgets: Forgets | None = None
    order: Order | None = None
    verdict: Verdict | None = None

    @model_validator(mode="after")
    def _finished(self) -> Record:
        if self.status == "finished" and self.verdict is None:
            raise ValueError("the run is finished and has no verdict")
        return self


class Asked(Contents):
    """A dev prompt that is answered at every evaluation."""

    example_id: str
    prompt: str = ""
    references: list[str] = []


class Sampled(Contents):
    """The answer to it at one of them."""

    example_id: str
    output: Any


class Event(Contents):
    """A line of metrics.jsonl."""

    step: NonNegativeInt
    event: str
    loss: float | None = None
    learning_rate: float | None = None
    split: str | None = None
    trains: str | None = None
    sources: dict[str, float] = {}
    asked: list[Asked] = []
    answers: list[Sampled] = []

    @model_validator(mode="after")
    def _whole(self) -> Event:
        needed = {"eval": ("split", self.split), "phase": ("trains", self.trains), "samples": ("answers", self.answers)}
        lacks = needed.get(self.event)
        if lacks and not lacks[1]:
            raise ValueError(f"{lacks[0]} is missing")
        return self


class Answer(Contents):
    """A line of predictions/*.jsonl."""

    example_id: str
    scores: dict[str, Any] = {}


class Alarm(Contents):
    """Whether the answers of one system look degenerate, and why."""

    alarm: bool
    share: Score
    faults: dict[str, int] = {}


class Split(Contents):
    """evaluation.json, of one split: who answered -> metric -> score, beside notes on them."""

    metrics: dict[str, dict[str, Any]] = {}
    degenerate: dict[str, Alarm] = {}
    comparison: dict[str, Any] = {}
    details: dict[str, Any] = {}

    @model_validator(mode="after")
    def _scored(self) -> Split:
        for scores in (self.model_extra or {}).values():
            for score in scores.values() if isinstance(scores, dict) else ():
                if isinstance(score, dict) and score.get("value") is not None:
                    Score.model_validate(score)
        return self


class Evaluation(Contents):
    """evaluation.json: split -> what its answers are worth."""

    @model_validator(mode="after")
    def _split(self) -> Evaluation:
        for found in (self.model_extra or {}).values():
            if isinstance(found, dict):
                Split.model_validate(found)
        return self


def read_contents(text: bytes, kind: type[Contents], place: Path | str, remedy: str) -> dict[str, Any]:
    """The object in a JSON text, which is UTF-8; RunError names the place, what is wrong there and the remedy."""
    try:
        value = json.loads(text.decode())
        kind.model_validate(value)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{place} is damaged: {_reason(error)}; {remedy}") from error
    return value


def _reason(error: Exception) -> str:
    """The first entry that is not as it is written, or what is wrong with the JSON."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    where, said = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ").splitlines()[0]
    if first["type"] == "model_type":
        said = "it is no object"
    return f"{where}: {said}" if where else said
