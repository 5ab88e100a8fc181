"""Arms against the first of them: metrics with intervals, tests on the same rows, and what makes them differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ghosttune.errors import InputError, RunError, listed
from ghosttune.judging.arms import Arm, answers_of, finite, grouped, interval_of, lower_is_better
from ghosttune.judging.comparison_text import as_markdown
from ghosttune.metrics.comparing import compared, together
from ghosttune.metrics.intervals import Interval
from ghosttune.run.directory import write_csv, write_json, write_text
from ghosttune.stages.runs import Run

Comparison = dict[str, Any]

COLUMNS = (
    "arm", "metric", "value", "low", "high", "rows", "change", "change_low", "change_high", "test", "p",
    "p_adjusted", "verdict"
)  # fmt: skip


def compare(runs: Sequence[str | Path], out: str | Path | None = None) -> Comparison:
    """Finished runs compared with the first; runs of equal settings and different seeds are one arm.

    `out` gets comparison.json, .csv and .md. Raises InputError for fewer than two arms, RunError for runs that are not
    finished or were judged on different rows.
    """
    return comparison_of(grouped(runs), out)


def comparison_of(arms: Sequence[Arm], out: str | Path | None = None, flags: Sequence[str] = ()) -> Comparison:
    """The comparison of these arms with the first of them; `flags` are what else has to be kept in mind."""
    if len(arms) < 2:
        raise InputError(
            f"one arm ({listed(arm.name for arm in arms)}) has nothing to be compared with; give another run"
        )
    arms, left_out = _matched(arms)
    first, *others = arms
    for arm in others:
        _require_same_rows(first, arm)
    result: Comparison = {
        "reference": first.name,
        "arms": {arm.name: _described(arm) for arm in arms},
        "tests": {arm.name: _tests(first, arm) for arm in others},
        "not_tested": {},
        "differing_settings": _differing(arms),
        "flags": [*_flags(arms), *left_out, *flags],
    }
    result["not_tested"] = {arm.name: _untested(arm, result["tests"][arm.name]) for arm in others}
    if out is not None:
        write(Path(out), result)
    return result


def write(folder: Path, result: Comparison) -> None:
    """comparison.json, .csv and .md."""
    write_json(folder / "comparison.json", result)
    write_csv(folder / "comparison.csv", COLUMNS, _rows(result))
    write_text(folder / "comparison.md", as_markdown(result))


def _matched(arms: Sequence[Arm]) -> tuple[list[Arm], list[str]]:
    """(the arms with their runs in one order of seeds, what was left out); arms without a common seed stay."""
    common = [seed for seed in arms[0].seeds if all(seed in arm.seeds for arm in arms)]
    if not common:
        counts = {len(arm.runs) for arm in arms}
        if len(counts) > 1:
            raise InputError(
                "the arms have no train.seed in common, nor as many runs each: "
                + "; ".join(f"{arm.name} has {listed(arm.seeds)}" for arm in arms)
            )
        return list(arms), []
    left_out = [
        f"seed: {listed(others)} of {arm.name} left out, which not every arm has"
        for arm in arms
        if (others := [seed for seed in arm.seeds if seed not in common])
    ]
    return [arm.of_seeds(common) for arm in arms], left_out


def _require_same_rows(first: Arm, other: Arm) -> None:
    """RunError unless each pair of runs was judged on the same dev rows, with the same questions."""
    for place, (one, two) in enumerate(zip(first.runs, other.runs, strict=True)):
        mine, theirs = first.losses[place], other.losses[place]
        if mine.keys() != theirs.keys():
            raise RunError(
                f"{one.path} and {two.path} were judged on different dev rows ({len(mine)} and {len(theirs)}, "
                f"{len(mine.keys() & theirs.keys())} of them in common), so that no row can be compared with itself; "
                "give both the same data and, where data.dev.fraction draws the rows, the same train.seed"
            )
        asked, again = (_asked(run) for run in (one, two))
        if changed := sorted(name for name in asked.keys() & again.keys() if asked[name] != again[name]):
            raise RunError(
                f"{one.path} and {two.path} give dev row {changed[0]} another prompt or reference ({len(changed)} rows "
                "in all): their data are not the same"
            )


def _asked(run: Run) -> dict[str, Any]:
    """Dev row -> what was asked, and what would have been right."""
    return {row["example_id"]: (row["prompt"], row.get("references")) for row in answers_of(run)}


def _described(arm: Arm) -> dict[str, Any]:
    return {
        "runs": [str(run.path) for run in arm.runs],
        "seeds": arm.seeds,
        "budget": arm.budget,
        "cost": arm.cost,
        "metrics": {name: finite(interval_of(score)) for name, score in arm.scores.items()},
        "by_seed": {name: [one.scores[name].value for one in arm.each if name in one.scores] for name in arm.scores},
    }


def _tests(first: Arm, arm: Arm) -> dict[str, Any]:
    """Metric -> the change from the first arm to this one, on the same rows, and what may be said of it."""
    results = {
        name: compared(score, first.scores[name], lower_is_better(name))
        for name, score in arm.scores.items()
        if name in first.scores and first.scores[name].n == score.n and _comparable(name, first, arm)
    }
    found = {}
    for name, result in together({name: result for name, result in results.items() if result is not None}).items():
        found[name] = result.as_dict()
        if len(arm.runs) > 1:
            found[name] |= _over_seeds(result.change, name, first, arm, result.verdict)
    return found


def _untested(arm: Arm, tests: Mapping[str, Any]) -> list[str]:
    """Metrics of the arm that no test was made of: predictions hold too little, or some draws give no value."""
    return [name for name in dict.fromkeys([*arm.scores, *arm.not_rebuilt]) if name not in tests]


def _over_seeds(change: Interval, name: str, first: Arm, arm: Arm, verdict: str) -> dict[str, Any]:
    """The change under each seed; a difference that not every seed shows is not put down to the arms."""
    pairs = zip(first.each, arm.each, strict=True)
    changes = [mine.scores[name].value - theirs.scores[name].value for theirs, mine in pairs]
    agree = sum(one * change.value > 0 for one in changes)
    return {
        "by_seed": changes,
        "seeds_agree": f"{agree} of {len(changes)}",
        "verdict": verdict if agree == len(changes) else "not distinguishable",
    }


def _comparable(name: str, first: Arm, arm: Arm) -> bool:
    """Losses per target are of the same targets only under one tokenizer and template."""
    if name != "dev_loss":
        return True
    pairs = zip(first.losses, arm.losses, strict=True)
    return all([n for _, n in one.values()] == [n for _, n in two.values()] for one, two in pairs)


def _differing(arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """Setting -> its value in each arm, for those that are not the same in all; null where an arm has none."""
    names = dict.fromkeys(name for arm in arms for name in arm.settings)
    found = {name: {arm.name: arm.settings.get(name) for arm in arms} for name in names}
    return {
        name: values
        for name, values in found.items()
        if any(value != values[arms[0].name] for value in values.values())
    }


def _flags(arms: Sequence[Arm]) -> list[str]:
    """What makes a difference between arms ambiguous."""
    first = arms[0]
    flags = []
    for name, value in first.budget.items():
        if any(arm.budget[name] != value for arm in arms):
            said = "; ".join(f"{arm.name} {arm.budget[name]:,}" for arm in arms)
            flags.append(f"budget: {name.replace('_', ' ')} differ: {said}")
    if any(arm.seeds != first.seeds for arm in arms):
        flags.append("seed: " + "; ".join(f"{arm.name} has {listed(arm.seeds)}" for arm in arms))
    if any(_fingerprints(arm) != _fingerprints(first) for arm in arms):
        others = listed(arm.name for arm in arms if _fingerprints(arm) != _fingerprints(first))
        flags.append(f"data: the files of {others} are not those of {first.name}")
    if len(first.runs) == 1:
        flags.append("seed: one run per arm, so that intervals are over rows and not over what another seed would give")
    untold = sorted({arm.name for arm in arms if not _comparable("dev_loss", first, arm)})
    if untold:
        flags.append(f"dev_loss: {listed(untold)} and {first.name} have other tokenizers or templates: not tested")
    return flags


def _fingerprints(arm: Arm) -> list[list[str]]:
    return [sorted(run.record["data"]["fingerprints"].values()) for run in arm.runs]


def _rows(result: Comparison) -> list[list[Any]]:
    """A row per arm and metric."""
    rows = []
    for name, arm in result["arms"].items():
        for metric, interval in arm["metrics"].items():
            test = result["tests"].get(name, {}).get(metric)
            change = test["change"] if test else {}
            told = [test[key] for key in ("test", "p", "p_adjusted", "verdict")] if test else [None] * 4
            own = [interval[key] for key in ("value", "low", "high", "n")]
            rows.append([name, metric, *own, *(change.get(key) for key in ("value", "low", "high")), *told])
    return rows
