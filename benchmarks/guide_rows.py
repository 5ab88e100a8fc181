"""How much does a row's score depend on how many guide rows give it, and on which?

    python benchmarks/guide_rows.py RUN [--counts 1 4 8 16 32 64] [--draws 50] [--flag planted]

Every training row is scored at every checkpoint of the run against the mean gradient of so many of its guide rows,
drawn `--draws` times. Do the scores rank the rows as those of all guide rows do, and as those of the dev rows do, which
are none of them? Where rows carry a yes/no column (`--flag`), how well do low scores find its rows? The dev rows chose
the best step and nothing that is looked at here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ghosttune.choosing.opened import OpenedRun
from ghosttune.data.encoding import RowFeatures
from ghosttune.training.sketching import EXACT, over_second_moments, sketcher_of

COUNTS = (1, 4, 8, 16, 32, 64)
SCORES = ("cosine", "dot", "adamw")


class Checkpoint:
    """Whole gradients of training, guide and dev rows at one step."""

    def __init__(self, opened: OpenedRun, step: int):
        self.sketcher = sketcher_of(opened.adapted.facts, opened.parameters, len(opened.train.ids), EXACT)
        gradients = opened.gradients(step, self.sketcher)

        def rows(features: Iterable[RowFeatures]) -> dict[str, Tensor]:
            found = gradients.sketches(list(features))
            return {name: row for ids, own in found for name, row in zip(ids, own.float(), strict=True)}

        train = rows(opened.train.features)
        self.train = torch.stack([train[name] for name in opened.train.ids])
        self.guide = torch.stack(list(rows(opened.prepared.guide.features).values()))
        self.dev = torch.stack(list(rows(opened.prepared.dev.features).values()))
        moments, epsilon = opened.second_moments(step), opened.config.train.adam_epsilon
        ones = {name: torch.ones_like(parameter) for name, parameter in opened.parameters.items()}
        self.scale = self.sketcher.row(over_second_moments(ones, moments, epsilon))

    def scores(self, by: str, judges: Tensor) -> Tensor:
        """[rows]: higher lowers the loss of these judging rows more."""
        direction = judges.mean(0) * (self.scale if by == "adamw" else 1)
        found = self.train @ direction
        return found / (self.train.norm(dim=1) * direction.norm()) if by == "cosine" else found


def ranks(values: Tensor) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(values.numpy())


def agreement(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation."""
    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def told_apart(scores: Tensor, flagged: np.ndarray) -> float:
    """Chance that a flagged row stands below one that is not."""
    return float(roc_auc_score(flagged, -scores.numpy()))


def mean_scores(checkpoints: list[Checkpoint], by: str, rows: np.ndarray | None) -> Tensor:
    """Mean over the checkpoints, of the guide rows at these places; None: of all dev rows."""
    found = [one.scores(by, one.dev if rows is None else one.guide[torch.from_numpy(rows)]) for one in checkpoints]
    return torch.stack(found).mean(0)


def study(checkpoints: list[Checkpoint], by: str, counts: Iterable[int], draws: int, flagged: np.ndarray) -> list[str]:
    """A line of the table for each count: means and, over the draws, the range from the 5th to the 95th per cent."""
    pool = len(checkpoints[0].guide)
    whole, others = mean_scores(checkpoints, by, np.arange(pool)), mean_scores(checkpoints, by, None)
    random = np.random.default_rng(0)
    lines = []
    for count in counts:
        found = []
        for _ in range(1 if count == pool else draws):
            scores = mean_scores(checkpoints, by, random.choice(pool, count, replace=False))
            apart = [told_apart(scores, flagged)] if flagged.any() else []
            found.append([agreement(scores, whole), agreement(scores, others), *apart])
        cells = [_range(column) for column in np.array(found).T]
        lines.append(f"| {by} | {count} | {' | '.join(cells)} |")
    return lines


def _range(values: np.ndarray) -> str:
    low, high = np.quantile(values, [0.05, 0.95])
    return f"{values.mean():.2f}" + (f" ({low:.2f} to {high:.2f})" if len(values) > 1 else "")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--flag", default="planted")
    chosen = parser.parse_args(argv)
    opened = OpenedRun(chosen.run, "cpu")
    pool = len(opened.prepared.guide.features)
    if max(chosen.counts) > pool:
        raise SystemExit(f"{chosen.run} has {pool} guide rows; ask for at most as many")
    steps = opened.steps(["all"])
    checkpoints = [Checkpoint(opened, step) for step in steps]
    flagged = np.array([bool(opened.train.record(name).metadata.get(chosen.flag)) for name in opened.train.ids])
    first = checkpoints[0]
    print(f"{len(first.train)} training, {len(first.guide)} guide, {len(first.dev)} dev rows; steps {steps}; "
          f"{int(flagged.sum())} rows with {chosen.flag}")  # fmt: skip
    apart = f" | AUROC of {chosen.flag} |" if flagged.any() else " |"
    print(f"| score | guide rows | with all guide rows | with the dev rows{apart}")
    print("|---|--:|--:|--:|--:|" if flagged.any() else "|---|--:|--:|--:|")
    for by in SCORES:
        print("\n".join(study(checkpoints, by, chosen.counts, chosen.draws, flagged)))


if __name__ == "__main__":
    from quick import launch

    launch(main, "{run} --counts 2 8 --draws 3")
