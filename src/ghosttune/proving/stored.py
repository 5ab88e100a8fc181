"""Proof 7: what was planted among the rows is found through the stores of their gradients.

One store per quarter of the run, and the mean of the cosines by the learning rate at each, as `attribute` takes it and
TracIn sums over checkpoints (Pruthi et al. 2020): a row that has been memorised has hardly a gradient left, and what is
left of it points anywhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ghostgrad.influence import scores
from ghosttune.choosing.index import index
from ghosttune.choosing.opened import OpenedRun
from ghosttune.proving.findings import Bench, Finding, at_least, beside, every
from ghosttune.proving.learned import SPELT, Row, brief_questions, questions, shipped_rows, spelling, write
from ghosttune.stages.runs import Run

AT_ONCE = 16
NEAR, RELEVANT = 0.9, 0.75
COPIES = 20


def planted_rows_are_found(bench: Bench) -> list[Finding]:
    """Copies and near copies by their originals, rows of a skill by another row of it, facts by a question."""
    originals = [row for row in shipped_rows() if row["split"] == "train"][:COPIES]
    copies = [row | {"id": f"copy-{row['id']}"} for row in originals]
    near = [row | {"id": f"near-{row['id']}", "prompt": f"{row['prompt'][:-1]}!"} for row in originals]
    look = Lookup(bench.learned)
    first = {name: ids[0] for name, ids in look.nearest([*copies, *near], 1).items()}
    asked = spelling(("lantern", "orange", "turtle"))
    share, at_the_end = (_spelt(look.nearest(asked, len(SPELT), steps)) for steps in (look.steps, look.steps[-1:]))
    told, brief = look.nearest(questions(), 1), look.nearest(brief_questions(), 1)
    return [
        every("exact copies whose nearest row is the original", {n: _is_original(n, first[n]) for n in _ids(copies)}),
        at_least(
            "near copies (another mark at the end) whose nearest row is the original", _share(first, _ids(near)), NEAR
        ),
        at_least(f"rows of a rare skill among the {len(SPELT)} nearest to another of it", share, RELEVANT),
        beside("their share by chance", len(SPELT) / look.rows),
        beside("their share at the last checkpoint alone", at_the_end),
        every(
            f"facts whose row is the first of {look.rows} for a question about it",
            {name: _is_original(name, found[0]) for name, found in told.items()},
        ),
        beside("the same where the answer too is in other words", _share({n: f[0] for n, f in brief.items()}, brief)),
    ]


class Lookup:
    """The training rows of a run in stores of sketches of their gradients, one for each of its checkpoints."""

    def __init__(self, run: Run):
        index(run.path, checkpoints=["all"], kind="standard@1", batch_size=AT_ONCE, device="cpu")
        self.opened = OpenedRun(run.path, "cpu")
        self.steps = self.opened.steps(["all"])
        self.rows = len(self.opened.train.ids)

    def nearest(self, rows: Sequence[Row], count: int, steps: Sequence[int] = ()) -> dict[str, list[str]]:
        """Ids of the stored rows whose gradients point most nearly where a row's does, by the row's id; by the mean
        over these checkpoints (none: all), weighted by the learning rate."""
        path = self.opened.run.path.parent / "asked.jsonl"
        write(path, rows)
        features, total = self.opened.rows(path).features, defaultdict[str, Tensor](lambda: torch.zeros(self.rows))
        steps = steps or self.steps
        for step in steps:
            rate = self.opened.learning_rate(step) if len(steps) > 1 else 1.0
            store = self.opened.store(self.opened.train, step)
            places = [store.place(name) for name in self.opened.train.ids]
            gradients = self.opened.gradients(step, self.opened.sketcher(store), AT_ONCE)
            for ids, sketches in gradients.sketches(features):
                for name, cosines in zip(ids, scores(store, sketches.float(), "cosine"), strict=True):
                    total[name] += rate * cosines[places]
        return {
            name: [self.opened.train.ids[place] for place in sums.topk(count).indices] for name, sums in total.items()
        }


def _spelt(nearest: Mapping[str, list[str]]) -> float:
    """The share of rows that spell among those that were found."""
    planted = {f"spelt-{word}" for word in SPELT}
    return sum(len(planted & set(ids)) for ids in nearest.values()) / (len(nearest) * len(SPELT))


def _ids(rows: Sequence[Row]) -> list[str]:
    return [row["id"] for row in rows]


def _is_original(name: str, found: str) -> bool:
    """Whether what was found is what the name was made from: `copy-X` from X, `asked-X` from fact-X."""
    made_from = name.split("-", 1)[1]
    return found in (made_from, f"fact-{made_from}")


def _share(found: Mapping[str, str], names: Iterable[str]) -> float:
    held = [_is_original(name, found[name]) for name in names]
    return sum(held) / len(held)
