"""The numbers of a run in one small object: statistics of its norms, ratios, losses and verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ghosttune.reports.contributions import module_drops
from ghosttune.reports.gradients import lines_of
from ghosttune.reports.reading import Norms, RunNumbers, mean_of

Summary = dict[str, Any]


def summary_of(numbers: RunNumbers) -> Summary:
    """What report/summary.json says; a part is missing where the run did not measure it.

    `raw` and `effective` hold per group mean, standard deviation, extremes and the step of the highest norm, over the
    measured steps at which it trained, and the ratio of the means of attention and MLP.
    """
    parts = {"raw": numbers.norms, "effective": numbers.effective}
    summary: Summary = {name: _statistics(norms) for name, norms in parts.items() if norms is not None}
    drops: dict[str, float] = {}
    for (_, group, _), fell in module_drops(numbers).items():
        drops[group] = drops.get(group, 0.0) + fell
    if drops:
        summary["guide_loss_drop"] = drops
    evals = [(step, loss) for step, split, loss in numbers.losses if split == "dev"]
    if evals:
        best = min(evals, key=lambda found: found[1])
        summary["dev_loss"] = {"first": evals[0][1], "last": evals[-1][1], "best": best[1], "best_step": best[0]}
    if numbers.rewards:
        own = [(step, reward, success) for step, kind, reward, success in numbers.rewards if kind == "dev"]
        best = max(own, key=lambda found: found[1])
        names = ("best_step", "reward", "success")
        summary["dev_reward"] = {"first": own[0][1], "first_success": own[0][2], **dict(zip(names, best, strict=True))}
    if "verdict" in numbers.record:
        summary["verdict"] = numbers.record["verdict"]
    return summary


def _statistics(norms: Norms) -> dict[str, Any]:
    lines = lines_of(norms).items()
    groups = {group: _of_line(norms.steps, line) for group, line in lines if not np.isnan(line).all()}
    means = {group: found["mean"] for group, found in groups.items()}
    ratio = means["attention"] / means["mlp"] if means.get("mlp") and "attention" in means else None
    return {"groups": groups, "attention_mlp_ratio": ratio}


def _of_line(steps: np.ndarray, line: np.ndarray) -> dict[str, float]:
    known = line[~np.isnan(line)]
    return {
        "mean": float(mean_of(line)),
        "std": float(known.std()),
        "max": float(known.max()),
        "min": float(known.min()),
        "peak_step": int(steps[int(np.nanargmax(line))]),
    }
