"""Proof 7: what was planted among the rows is found through the store of their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghostgrad import PROFILES, GradientEngine, Sketcher, Sketches
from ghostgrad.influence import top_k
from ghostgrad.store import GradientStore
from ghosttune.proving.findings import Bench, Finding, at_least, beside, every
from ghosttune.proving.learned import SPELT, Learned, Row, brief_questions, questions, shipped_rows, spelling
from ghosttune.training.instruments import MicroBatch

AT_ONCE = 16
NEAR, RELEVANT = 0.9, 0.75
COPIES = 20


def planted_rows_are_found(bench: Bench) -> list[Finding]:
    """Copies and near copies by their originals, rows of a skill by another row of it, facts by a question."""
    learned = bench.learned
    originals = [row for row in shipped_rows() if row["split"] == "train"][:COPIES]
    copies = [row | {"id": f"copy-{row['id']}"} for row in originals]
    near = [row | {"id": f"near-{row['id']}", "prompt": f"{row['prompt'][:-1]}!"} for row in originals]
    look = Lookup(learned, bench.folder / "store")
    first = {name: ids[0] for name, ids in look.nearest([*copies, *near], 1).items()}
    relevant = look.nearest(spelling(("lantern", "orange", "turtle")), len(SPELT))
    planted = {f"spelt-{word}" for word in SPELT}
    share = sum(len(planted & set(ids)) for ids in relevant.values()) / (len(relevant) * len(SPELT))
    told, brief = look.nearest(questions(), 1), look.nearest(brief_questions(), 1)
    return [
        every("exact copies whose nearest row is the original", {n: _is_original(n, first[n]) for n in _ids(copies)}),
        at_least(
            "near copies (another mark at the end) whose nearest row is the original", _share(first, _ids(near)), NEAR
        ),
        at_least(f"rows of a rare skill among the {len(SPELT)} nearest to another of it", share, RELEVANT),
        beside("their share by chance", len(SPELT) / len(look.store)),
        every(
            f"facts whose row is the first of {len(look.store)} for a question about it",
            {name: _is_original(name, found[0]) for name, found in told.items()},
        ),
        beside("the same where the answer too is in other words", _share({n: f[0] for n, f in brief.items()}, brief)),
    ]


class Lookup:
    """The training rows of a run in a store of sketches of their gradients at its last checkpoint."""

    def __init__(self, learned: Learned, folder: Path):
        self.learned = learned
        self.engine = GradientEngine(learned.model, select=["*lora_*"])
        shapes = {name: tuple(p.shape) for name, p in self.engine.parameters.items()}
        self.sketcher = Sketcher(shapes, PROFILES["standard@1"], frozenset())
        options, meaning = self.sketcher.options, self.sketcher.manifest()
        with GradientStore.create(folder, size=self.sketcher.size, dtype=options.dtype, meaning=meaning) as store:
            for ids, rows in self.sketched(learned.prepared.train.features):
                store.append(ids, rows)
        self.store = GradientStore.read(folder)

    def sketched(self, features: Sequence[Any]) -> Iterator[tuple[list[str], Tensor]]:
        """(ids, rows of the store) of the mean loss of each row, batch by batch."""
        model, prepared, sketches = self.learned.model, self.learned.prepared, Sketches(self.sketcher)
        for start in range(0, len(features), AT_ONCE):
            some = features[start : start + AT_ONCE]
            batch = prepared.collator(some)
            rows = MicroBatch([row.example_id for row in some], *prepared.task.head_positions(model, batch))
            with self.engine.probe(sketches, examples=len(some), selected=rows.selected(self.engine)) as backward:
                targets = torch.tensor([row.targets for row in some])
                backward((prepared.task.example_loss(model, batch) / targets).sum())
            yield rows.example_ids, sketches.rows()

    def nearest(self, rows: Sequence[Row], count: int) -> dict[str, list[str]]:
        """Ids of the stored rows whose gradients point most nearly where a row's does, by the row's id."""
        found = {}
        for ids, sketches in self.sketched(self.learned.features(rows)):
            best = top_k(self.store, sketches, count, similarity="cosine")
            found |= {name: nearest.ids for name, nearest in zip(ids, best, strict=True)}
        return found


def _ids(rows: Sequence[Row]) -> list[str]:
    return [row["id"] for row in rows]


def _is_original(name: str, found: str) -> bool:
    """Whether what was found is what the name was made from: `copy-X` from X, `asked-X` from fact-X."""
    made_from = name.split("-", 1)[1]
    return found in (made_from, f"fact-{made_from}")


def _share(found: Mapping[str, str], names: Iterable[str]) -> float:
    held = [_is_original(name, found[name]) for name in names]
    return sum(held) / len(held)
