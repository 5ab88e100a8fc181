"""Answers that the model draws to the prompts of a step, what they are worth, and the batches that train on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ghosttune.data.encoding import IGNORED, RowFeatures, padded
from ghosttune.models.reference import as_reference
from ghosttune.run.tables import Table
from ghosttune.tasks.policy import advantages
from ghosttune.training.guide import evaluating
from ghosttune.training.instruments import Instrument

TABLE = "completions"
COLUMNS = {
    "step": "int64",
    "example_id": "string",
    "part": "string",
    "prompt_tokens": "int64",
    "tokens": "int64",
    "stopped": "bool",
    "reward": "float64",
    "success": "bool",
    "advantage": "float64",
    "text": "string",
}
"""Of tables/completions: `step` is the first update that they train; `part` as in tables/ledger."""

NOTHING_LOGGED = (0.0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Drawn:
    """An answer that was drawn."""

    ids: list[int]
    """New tokens, the stop token included."""
    text: str
    stopped: bool


class Answers(Protocol):
    """What writes behind prompts, and judges what is written."""

    def prompt(self, position: int) -> list[int]:
        """Token ids of the prompt of a training row."""
        ...

    def draw(self, prompts: Sequence[list[int]], seed: int) -> list[Drawn]: ...
    def rewards(self, positions: Sequence[int], drawn: Sequence[Drawn]) -> np.ndarray:
        """[N, rewards] what each answer to a training row earns."""
        ...

    def on_dev_rows(self) -> dict[str, float]:
        """`reward` and `success` of greedy answers to dev prompts."""
        ...


@dataclass(frozen=True)
class Completion:
    """One answer as the model reads it."""

    ids: np.ndarray
    """[T] prompt and answer."""
    tokens: int
    """Of the answer, which is the end."""
    advantage: float
    drawn: Tensor | None = None
    """[tokens] log-probability of each of its tokens under the policy that drew it."""
    base: Tensor | None = None
    """[tokens] the same under the untouched base."""

    @property
    def said(self) -> slice:
        """Where in the sequence the model says the answer's tokens."""
        return slice(len(self.ids) - 1 - self.tokens, len(self.ids) - 1)


class Rollouts(Instrument):
    """Draws the answers that a step trains.

    Which they are is a function of the weights, the prompts, the seed of the run and the number of the update.

    Args:
        model: the one that trains, unwrapped.
        task: `grpo`.
        rows: the training rows.
        answers: what writes and judges.
        pad_token_id: any token; padding is recognised by position.
        table: of COLUMNS; one entry per answer.
        seed: of the run.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Any,
        rows: Sequence[RowFeatures],
        answers: Answers,
        pad_token_id: int,
        table: Table,
        seed: int,
    ):
        self.model, self.task, self.rows, self.answers = model, task, rows, answers
        self.pad_token_id, self.table, self.tables, self.seed = pad_token_id, table, (table,), seed
        self.settings = task.settings
        self.positions: list[int] = []
        """Rows whose answers train now, in their order."""
        self.groups: list[list[Completion]] = []
        """Of each of these rows, its answers."""
        self.used = 0
        """Updates that these answers have trained."""
        self.unlogged: list[float] = list(NOTHING_LOGGED)
        """Reward, successes, answers, rows that teach nothing, rows, tokens and stopped answers since the last log."""

    def batches(self, step: int, offered: Sequence[Sequence[int]]) -> list[dict[str, Tensor]]:
        """The micro-batches of update `step`, of the answers to the rows at these positions."""
        positions = [position for part in offered for position in part]
        ends = np.cumsum([len(part) for part in offered]).tolist()
        parts = [range(end - len(part), end) for part, end in zip(offered, ends, strict=True)]
        if positions != self.positions or self.used == self.settings.updates:
            self._draw(step, positions)
            self._read(parts)
        self.used += 1
        return [self._batch(part) for part in parts]

    def _draw(self, step: int, positions: list[int]) -> None:
        count = self.settings.completions
        prompts = [self.answers.prompt(position) for position in positions]
        asked = [prompt for prompt in prompts for _ in range(count)]
        drawn = self.answers.draw(asked, draws_of(self.seed, step))
        earned = self.answers.rewards([position for position in positions for _ in range(count)], drawn)
        rewards, successes = earned.sum(1), (earned >= 1).all(1)
        grouped = torch.from_numpy(rewards).reshape(-1, count)
        worth = advantages(grouped, self.task.loss.scaled).flatten().tolist()
        every = [
            Completion(np.array(prompt + one.ids, np.int32), len(one.ids), advantage)
            for prompt, one, advantage in zip(asked, drawn, worth, strict=True)
        ]
        self.positions, self.groups, self.used = positions, _grouped(every, count), 0
        self._record(step, prompts, drawn, rewards, successes, worth)
        flat = int((grouped == grouped[:, :1]).all(1).sum())
        tokens, stopped = sum(len(one.ids) for one in drawn), sum(one.stopped for one in drawn)
        found = (rewards.sum(), successes.sum(), len(drawn), flat, len(positions), tokens, stopped)
        self.unlogged = [before + float(new) for before, new in zip(self.unlogged, found, strict=True)]

    def _record(self, step: int, prompts: Any, drawn: Any, rewards: Any, successes: Any, worth: Any) -> None:
        count = self.settings.completions
        columns = {
            "step": [step] * len(drawn),
            "example_id": [self.rows[position].example_id for position in self.positions for _ in range(count)],
            "part": [*self.task.parts] * len(self.positions),
            "prompt_tokens": [len(prompt) for prompt in prompts for _ in range(count)],
            "tokens": [len(one.ids) for one in drawn],
            "stopped": [one.stopped for one in drawn],
            "reward": rewards.tolist(),
            "success": successes.tolist(),
            "advantage": worth,
            "text": [one.text for one in drawn],
        }
        self.table.append(step, columns)

    def _read(self, parts: Sequence[range]) -> None:
        """Adds what the policy says of its answers before it learns from them, and what the base says, where needed."""
        if self.settings.updates > 1:
            self._add("drawn", parts, evaluating(self.model))
        if self.settings.beta:
            self._add("base", parts, as_reference(self.model))

    def _add(self, name: str, parts: Sequence[range], state: AbstractContextManager[None]) -> None:
        device = next(self.model.parameters()).device
        with torch.no_grad(), state:
            for part in parts:
                batch = {key: tensor.to(device) for key, tensor in self._batch(part).items()}
                said = iter(self.task.token_logps(self.model, batch).float().cpu())
                for row in part:
                    self.groups[row] = [
                        replace(one, **{name: next(said)[one.said].clone()}) for one in self.groups[row]
                    ]

    def _batch(self, rows: range) -> dict[str, Tensor]:
        """input_ids, attention_mask, labels [S, T]; owner, number, advantage [S]; example_index [B]; logps [S, T-1]."""
        completions, count = [one for row in rows for one in self.groups[row]], self.settings.completions
        labels = [np.r_[np.full(len(one.ids) - one.tokens, IGNORED), one.ids[-one.tokens :]] for one in completions]
        arrays = {
            "input_ids": padded([one.ids for one in completions], self.pad_token_id),
            "attention_mask": padded([np.ones_like(one.ids) for one in completions], 0),
            "labels": padded(labels, IGNORED),
            "owner": np.repeat(np.arange(len(rows)), count),
            "number": np.tile(np.arange(count), len(rows)),
            "advantage": np.array([one.advantage for one in completions]),
            "example_index": np.array([self.positions[row] for row in rows]),
        }
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        for name in ("drawn", "base"):
            if all(getattr(one, name) is not None for one in completions):
                batch[name] = self._placed([(one, getattr(one, name)) for one in completions])
        return batch

    def _placed(self, logps: Sequence[tuple[Completion, Tensor]]) -> Tensor:
        """[S, T-1] each where the model says it."""
        placed = torch.zeros(len(logps), max(len(one.ids) for one, _ in logps) - 1, dtype=logps[0][1].dtype)
        for row, (one, own) in enumerate(logps):
            placed[row, one.said] = own
        return placed

    def logged(self) -> dict[str, float]:
        """What an event says of the answers since the last one; nothing where none were drawn."""
        reward, successes, count, flat, rows, tokens, stopped = self.unlogged
        self.unlogged = list(NOTHING_LOGGED)
        if not count:
            return {}
        return {
            "reward": reward / count,
            "success": successes / count,
            "flat_groups": flat / rows,
            "completion_tokens": tokens / count,
            "stopped": stopped / count,
        }

    def counters(self) -> dict[str, Any]:
        return {"rollouts": {"unlogged": self.unlogged, "used": self.used, "positions": self.positions}}

    def tensors(self) -> dict[str, Tensor]:
        """The answers that train on after this update."""
        if not 0 < self.used < self.settings.updates:
            return {}
        every = [one for group in self.groups for one in group]
        found = {
            "ids": torch.from_numpy(np.concatenate([one.ids for one in every])),
            "lengths": torch.tensor([[len(one.ids), one.tokens] for one in every]),
            "advantages": torch.tensor([one.advantage for one in every], dtype=torch.float64),
        }
        for name in ("drawn", "base"):
            parts = [part for one in every if (part := getattr(one, name)) is not None]
            found |= {name: torch.cat(parts)} if parts else {}
        return {f"rollouts.{name}": tensor for name, tensor in found.items()}

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        saved = counters["rollouts"]
        self.unlogged, self.used, self.positions = saved["unlogged"], saved["used"], saved["positions"]
        own = {key.removeprefix("rollouts."): t.cpu() for key, t in tensors.items() if key.startswith("rollouts.")}
        if own:
            self.groups = _grouped(self._restored(own), self.settings.completions)

    def _restored(self, own: Mapping[str, Tensor]) -> list[Completion]:
        lengths = own["lengths"].tolist()
        ids = own["ids"].split([length for length, _ in lengths])
        nothing = (None,) * len(lengths)
        logps = [own[n].split([t for _, t in lengths]) if n in own else nothing for n in ("drawn", "base")]
        found = zip(ids, lengths, own["advantages"].tolist(), *logps, strict=True)
        return [
            Completion(one.numpy(), tokens, advantage, drawn, base)
            for one, (_, tokens), advantage, drawn, base in found
        ]


def _grouped(completions: Sequence[Completion], count: int) -> list[list[Completion]]:
    return [list(completions[start : start + count]) for start in range(0, len(completions), count)]


def draws_of(seed: int, step: int) -> int:
    """The seed of the first answer that is drawn for an update; those of other updates are far away."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)
