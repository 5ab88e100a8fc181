"""How often verdicts name a difference that is not there, and how often they miss one that is.

    python benchmarks/verdicts.py [--trials 10000] [--data ../shared/data/e2e] [--out benchmarks/verdicts.md]

Each cell draws rows anew, `--trials` times, and asks the product's own functions for a verdict. False: the share of
trials without a difference in which one was named. Power: the share of trials with a difference (two fifths as many)
in which it was named, beside that of the textbook's t test on the same rows (Mann-Whitney's for AUROC, McNemar's has no
rival here), and that of the same test held to 5 %: at the p below which it names 5 % of the null differences.

Without a difference, two systems are exchangeable: whose answer to a row is whose was decided by a coin. A difference
is of so many standard errors of all rows there could be: in those of the drawn rows every trial's t would be moved by
the same, and where scores have few levels a tenth of all trials would stand at one value.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from quick import launch
from scipy import stats

from ghosttune.metrics.comparing import compared
from ghosttune.metrics.intervals import CHANCE, mean_ratio, verdict
from ghosttune.metrics.ranking import auroc, separation
from ghosttune.metrics.scoring import of_hits, of_mean

ROWS = (6, 7, 8, 10, 12, 16, 20, 30, 50, 100, 200)
NOTHING = "not distinguishable"
MOST_FALSE = 0.06
SIZE = 2.4
"""Of a difference that is there, in standard errors."""
Random = np.random.Generator
Pair = tuple[np.ndarray, np.ndarray]
Trial = Callable[[Random, int, float], tuple[bool, float]]
"""(random, rows, size of the difference in standard errors) -> (the product names one, the rival's p)."""


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


def deviation(value: Callable[[Pair], np.ndarray], kind: str, rouge: np.ndarray | None = None) -> float:
    """The standard deviation of what `value` makes of a pair of systems, over 1,000 draws of up to 200 rows."""
    random = np.random.default_rng(1)
    size = 200 if rouge is None else min(200, rouge.shape[1])
    return float(np.sqrt(np.mean([value(scores(kind, random, size, rouge)).var() for _ in range(1000)])))


def paired(
    kind: str, rouge: np.ndarray | None, spread: float, random: Random, n: int, size: float
) -> tuple[bool, float]:
    ours, theirs = scores(kind, random, n, rouge)
    ours = ours + size * spread / np.sqrt(n)
    found = compared(of_mean(ours.tolist()), of_mean(theirs.tolist()))
    differences = ours - theirs
    varies = np.ptp(differences) > 1e-12
    rival = float(stats.ttest_rel(ours, theirs).pvalue) if varies else float(abs(differences[0]) < 1e-12)
    return found is not None and found.verdict != NOTHING, rival


def ratio(spread: float, grows: float, random: Random, n: int, size: float) -> tuple[bool, float]:
    """Losses per target: rows of 1 and more targets, log-normal with `spread`; noise grows with their power `grows`."""
    weights = np.maximum(1, np.round(20 * random.lognormal(0, spread, n)))
    noise = random.normal(size=n) * weights**grows
    totals = noise + size / np.sqrt(n) * weights * float(np.sqrt((weights ** (2 * grows)).mean())) / weights.mean()
    value = totals.sum() / weights.sum()
    error = np.sqrt(((totals - value * weights) ** 2).sum() / (n * (n - 1))) / weights.mean()
    return verdict(mean_ratio(totals, weights), of=0.0) != NOTHING, float(2 * stats.t.sf(abs(value) / error, n - 1))


def flags(kind: str, others: int, spread: float, random: Random, n: int, size: float) -> tuple[bool, float]:
    """`n` flagged rows among `others`."""
    both = np.concatenate(scores(kind, random, n + others))[: n + others]
    both[:n] -= size * np.sqrt(1 / n + 1 / others) * spread
    flagged = np.arange(n + others) < n
    rival = stats.mannwhitneyu(both[:n], both[n:], method="asymptotic", use_continuity=False).pvalue
    return separation(auroc(both, flagged), min(n, others)) != NOTHING, float(rival)


def shares(random: Random, n: int, size: float) -> tuple[bool, float]:
    ours, theirs = random.random(n) < 0.5, random.random(n) < 0.5 - size / np.sqrt(2 * n)
    named = compared(of_hits(ours.tolist()), of_hits(theirs.tolist()))
    assert named is not None
    return named.verdict != NOTHING, named.p


def trials(rouge: np.ndarray | None) -> Iterator[tuple[str, Trial]]:
    for kind in ("normal", "skewed", "discrete", "three levels", *(["ROUGE-L"] if rouge is not None else [])):
        apart = deviation(lambda pair: pair[0] - pair[1], kind, rouge)
        yield f"paired differences, {kind}", partial(paired, kind, rouge, apart)
    for spread, grows in ((0.3, 1.0), (0.5, 0.5), (0.5, 1.0), (0.7, 1.0), (1.0, 0.5), (1.0, 1.0)):
        yield f"ratio, lengths log-normal {spread}, noise as length^{grows}", partial(ratio, spread, grows)
    for kind in ("normal", "skewed", "discrete"):
        apart = deviation(lambda pair: pair[0], kind)
        for others in (6, 40, 200):
            yield f"AUROC of n flagged among {others} others, {kind}", partial(flags, kind, others, apart)
    yield "shares (McNemar)", shares


@dataclass(frozen=True)
class Rates:
    """Shares of trials in which a difference was named: none was there, one was; by the rival, and held to 5 %."""

    false: float
    power: float
    rival: float
    held: float


def rates(trial: Trial, rows: int, count: int, seed: int = 0) -> Rates:
    """Costs `count` trials without a difference and two fifths as many with one."""
    random = np.random.default_rng([seed, rows])
    nothing = np.array([trial(random, rows, 0.0) for _ in range(count)], float)
    something = np.array([trial(random, rows, SIZE) for _ in range(2 * count // 5)], float)
    mark = np.sort(nothing[:, 1])[round(CHANCE * count)]
    doubts = something[:, 1]
    return Rates(
        float(nothing[:, 0].mean()),
        float(something[:, 0].mean()),
        float((doubts < CHANCE).mean()),
        float((doubts < mark).mean()),
    )


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
            found = rates(trial, n, count)
            worst = max(worst, found.false)
            line.append(
                f"{100 * found.false:.1f} ({100 * found.power:.0f}, {100 * found.rival:.0f}, {100 * found.held:.0f})"
            )
        print(" | ".join(line), flush=True)
        lines.append(line)
    return lines, worst


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
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
            f"{count} trials a cell; each cell: false verdicts in % (power, the rival's, the rival's held to 5 %). "
            f"Largest: {worst:.1%}."
        )
        given.out.write_text("\n".join(["# Verdicts", "", note, "", *page, ""]), encoding="utf-8")


if __name__ == "__main__":
    launch(main, "--trials 20 --rows 6 20")
