"""How often verdicts name a difference that is not there, and how often they miss one that is.

    python benchmarks/verdicts.py [--trials 4000] [--data ../shared/data/e2e] [--out benchmarks/verdicts.md]

Each cell draws rows anew, `--trials` times, and asks the product's own functions for a verdict. False: the share of
trials without a difference in which one was named. Power: the share of trials with a difference in which it was named,
beside that of the textbook's t test on the same rows (Mann-Whitney's for AUROC, McNemar's has no rival here).

Without a difference, two systems are exchangeable: whose answer to a row is whose was decided by a coin.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from quick import launch
from scipy import stats

from ghosttune.metrics.comparing import compared
from ghosttune.metrics.intervals import mean_ratio, verdict
from ghosttune.metrics.ranking import auroc, separation
from ghosttune.metrics.scoring import of_hits, of_mean

ROWS = (6, 7, 8, 10, 12, 16, 20, 30, 50, 100, 200)
NOTHING = "not distinguishable"
MOST_FALSE = 0.06
Random = np.random.Generator
Pair = tuple[np.ndarray, np.ndarray]
Trial = Callable[[Random, int, float], tuple[bool, bool]]
"""(random, rows, size of the difference in standard errors) -> (the product names one, the rival does)."""


def scores(kind: str, random: Random, n: int, rouge: np.ndarray | None = None) -> Pair:
    """Scores of two exchangeable systems on the same rows, [n] each."""
    if kind == "normal":
        rows = random.normal(size=n)
        return rows + random.normal(size=n), rows + random.normal(size=n)
    if kind == "skewed":
        return random.lognormal(0, 1, n), random.lognormal(0, 1, n)
    if kind == "discrete":
        levels = np.array([0, 0.2, 0.25, 0.5, 1])
        return random.choice(levels, n), random.choice(levels, n)
    if kind == "three levels":
        return random.choice([0.0, 0.5, 1.0], n), random.choice([0.0, 0.5, 1.0], n)
    assert rouge is not None
    two = rouge[random.choice(len(rouge), 2, replace=False)][:, random.choice(rouge.shape[1], n, replace=False)]
    swapped = random.random(n) < 0.5
    return np.where(swapped, two[1], two[0]), np.where(swapped, two[0], two[1])


def paired(kind: str, rouge: np.ndarray | None, random: Random, n: int, size: float) -> tuple[bool, bool]:
    ours, theirs = scores(kind, random, n, rouge)
    ours = ours + size * float(np.std(ours - theirs)) / np.sqrt(n)
    found = compared(of_mean(ours.tolist()), of_mean(theirs.tolist()))
    differences = ours - theirs
    spread = differences.std(ddof=1)
    rival = (spread == 0 and differences[0] != 0) or (spread > 0 and stats.ttest_rel(ours, theirs).pvalue < 0.05)
    return found is not None and found.verdict != NOTHING, bool(rival)


def ratio(spread: float, grows: float, random: Random, n: int, size: float) -> tuple[bool, bool]:
    """Losses per target: rows of 1 and more targets, log-normal with `spread`; noise grows with their power `grows`."""
    weights = np.maximum(1, np.round(20 * random.lognormal(0, spread, n)))
    noise = random.normal(size=n) * weights**grows
    totals = noise + size / np.sqrt(n) * weights * float(np.std(noise)) / weights.mean()
    value = totals.sum() / weights.sum()
    error = np.sqrt(((totals - value * weights) ** 2).sum() / (n * (n - 1))) / weights.mean()
    return verdict(mean_ratio(totals, weights), of=0.0) != NOTHING, abs(value) > stats.t.ppf(0.975, n - 1) * error


def flags(kind: str, others: int, random: Random, n: int, size: float) -> tuple[bool, bool]:
    """`n` flagged rows among `others`."""
    both = np.concatenate(scores(kind, random, n + others))[: n + others]
    both[:n] -= size * np.sqrt(1 / n + 1 / others) * float(np.std(both))
    flagged = np.arange(n + others) < n
    rival = stats.mannwhitneyu(both[:n], both[n:], method="asymptotic", use_continuity=False).pvalue < 0.05
    return separation(auroc(both, flagged), min(n, others)) != NOTHING, bool(rival)


def shares(random: Random, n: int, size: float) -> tuple[bool, bool]:
    ours, theirs = random.random(n) < 0.5, random.random(n) < 0.5 - size / np.sqrt(2 * n)
    named = compared(of_hits(ours.tolist()), of_hits(theirs.tolist()))
    assert named is not None
    return named.verdict != NOTHING, named.verdict != NOTHING


def trials(rouge: np.ndarray | None) -> Iterator[tuple[str, Trial]]:
    for kind in ("normal", "skewed", "discrete", "three levels", *(["ROUGE-L"] if rouge is not None else [])):
        yield f"paired differences, {kind}", partial(paired, kind, rouge)
    for spread, grows in ((0.3, 1.0), (0.5, 0.5), (0.5, 1.0), (0.7, 1.0), (1.0, 0.5), (1.0, 1.0)):
        yield f"ratio, lengths log-normal {spread}, noise as length^{grows}", partial(ratio, spread, grows)
    for kind in ("normal", "skewed", "discrete"):
        for others in (6, 40, 200):
            yield f"AUROC of n flagged among {others} others, {kind}", partial(flags, kind, others)
    yield "shares (McNemar)", shares


def rates(trial: Trial, rows: int, count: int, size: float, seed: int = 0) -> tuple[float, float]:
    """The share of trials in which the product, and its rival, name a difference."""
    random = np.random.default_rng([seed, rows, int(10 * size)])
    return tuple(np.mean([trial(random, rows, size) for _ in range(count)], axis=0).tolist())


def rouge_of_systems(folder: Path, most: int = 630) -> np.ndarray | None:
    """[systems, most] ROUGE-L of four primary systems of the E2E challenge; None where the files are not there."""
    outputs, truth = folder / "system_outputs_primary.jsonl.gz", folder / "testset_w_refs.csv.gz"
    if not outputs.is_file() or not truth.is_file():
        return None
    import csv

    from rouge_score.rouge_scorer import RougeScorer

    references: dict[str, list[str]] = {}
    with gzip.open(truth, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            references.setdefault(row["mr"], []).append(row["ref"])
    with gzip.open(outputs, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    names = ("tgen", "slug", "gong", "nle")

    def best(row: dict[str, str], name: str) -> float:
        return max(scorer.score(text, row[name])["rougeL"].fmeasure for text in references[row["mr"]])

    return np.array([[best(row, name) for row in rows[:most]] for name in names])


def table(rouge: np.ndarray | None, count: int, rows: Sequence[int], match: str) -> tuple[list[list[str]], float]:
    """(lines of the table, the largest share of false verdicts)."""
    lines, worst = [], 0.0
    for name, trial in trials(rouge):
        if match not in name:
            continue
        line = [name]
        for n in rows:
            false, _ = rates(trial, n, count, 0.0)
            power, rival = rates(trial, n, count, 2.4)
            worst = max(worst, false)
            line.append(f"{100 * false:.1f} ({100 * power:.0f}, {100 * rival:.0f})")
        print(" | ".join(line), flush=True)
        lines.append(line)
    return lines, worst


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/e2e"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--match", default="", help="only cells whose name holds this")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    given = parser.parse_args(argv)
    count, rows = given.trials, given.rows
    lines, worst = table(rouge_of_systems(given.data), count, rows, given.match)
    if given.out:
        head = ["rows n", *map(str, rows)]
        page = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]
        note = (
            f"{count} trials a cell; each cell: false verdicts in % (power, the rival's power). Largest: {worst:.1%}."
        )
        given.out.write_text("\n".join(["# Verdicts", "", note, "", *page, ""]), encoding="utf-8")


if __name__ == "__main__":
    launch(main, "--trials 20 --rows 6 20")
