"""What comes first: the verdict, the figures one asks for, and what to mind before concluding anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ghosttune.config import trusting
from ghosttune.reports.evaluation import splits_of
from ghosttune.reports.markup import Markup, joined, shown, tag
from ghosttune.reports.reading import RunNumbers

VERDICTS = {
    "better": "The adapter is better than the untouched base.",
    "worse": "The adapter is WORSE than the untouched base.",
    "negligible": "The adapter differs from the untouched base by less than is worth naming.",
    "not distinguishable": "The adapter is not distinguishable from the untouched base.",
}

UNFINISHED = {
    "running": "This run has not finished; what follows is what it wrote so far.",
    "stopped": "This run was stopped before its end; `ghosttune train --resume` continues it.",
    "failed": "This run failed",
}


def verdict(numbers: RunNumbers) -> Markup:
    """The sentence, the tiles and the reservations."""
    judged = numbers.record.get("verdict")
    status = numbers.record["status"]
    sentence = VERDICTS[judged["verdict"]] if judged else UNFINISHED[status]
    if status == "failed" and "error" in numbers.record:
        sentence = f"{sentence}: {numbers.record['error']}"
    kind = judged["verdict"].split()[0] if judged else status
    tiles = [
        tag("div", tag("span", title), tag("b", value), tag("span", note), class_="tile")
        for title, value, note in _tiles(numbers)
    ]
    notes = [tag("li", note) for note in reservations(numbers)]
    return joined(
        [
            tag("p", sentence, class_=f"verdict {kind}"),
            tag("div", *tiles, class_="tiles"),
            tag("h4", "Before concluding anything"),
            tag("ul", *notes, class_="notes"),
        ]
    )


def _tiles(numbers: RunNumbers) -> list[tuple[str, str, str]]:
    """(title, value, what stands below it)."""
    record, account = numbers.record, numbers.ledger
    tiles = []
    if judged := record.get("verdict"):
        if earned := judged.get("reward"):
            own = f"change {interval(earned['change'])}, {earned['change']['n']} dev prompts"
            tiles.append(("reward of greedy answers", _change(earned["base"], earned["adapter"]), own))
        change = f"change {interval(judged['change'])}, {judged['change']['n']} dev rows"
        tiles.append(("dev loss, nats per target", _change(judged["dev_loss_base"], judged["dev_loss"]), change))
    tiles += [tile for split in splits_of(numbers) for tile in _scores(numbers, split)][:2]
    if account:
        groups = numbers.summary["guide_loss_drop"]
        said = ", ".join(f"{group} {fell:+.3g}" for group, fell in sorted(groups.items(), key=lambda g: -g[1]))
        tiles.append(
            (
                "guide loss, held out",
                _change(account["guide_loss_start"], account["guide_loss_end"]),
                f"lowered by {said}",
            )
        )
        for name, found in account["columns"].items():
            note = f"AUROC {interval(found['auroc'])} by standing"
            tiles.append((f"{found['rows']} {name} rows", found["verdict"], note))
    seconds = sum(record.get("stage_seconds", {}).values())
    speed = record.get("tokens_per_second")
    tiles.append(("time", duration(seconds), f"{speed:,.0f} tokens per second" if speed else f"{record['step']} steps"))
    return tiles


def _scores(numbers: RunNumbers, split: str) -> list[tuple[str, str, str]]:
    systems = splits_of(numbers)[split]
    first, *others = systems
    base = systems[others[0]] if others else {}
    tiles = []
    for name, score in systems[first].items():
        share = is_share(numbers, split, name)
        value = _written(score["value"], share)
        title = f"{name}, {split} rows"
        change = f"{_written(base[name]['value'], share)} → {value}" if name in base else value
        tiles.append((title, change, f"{first} {interval(score, share)}, {score['n']} rows"))
    return tiles


def is_share(numbers: RunNumbers, split: str, metric: str) -> bool:
    """Whether a metric is a share of the rows, which reads best in per cent."""
    described = numbers.evaluation[split].get("metrics", {})
    return described.get(metric, {}).get("scale", "").startswith("share")


def _change(before: float, after: float) -> str:
    return f"{shown(before)} → {shown(after)}"


def _written(value: float, share: bool) -> str:
    return f"{value:.0%}" if share else shown(value)


def interval(score: Mapping[str, Any], share: bool = False) -> str:
    """A score with its 95 % interval."""
    if score["low"] is None or score["high"] is None:
        return _written(score["value"], share)
    value, low, high = (_written(score[name], share) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def trained_on(record: Mapping[str, Any]) -> list[str]:
    """What of the rows that judge was trained on, a sentence per split."""
    notes = []
    for split, found in ((record.get("contamination") or {}).get("splits") or {}).items():
        if count := sum(found["trained"].values()):
            kinds = ", ".join(f"{number:,} {kind}" for kind, number in found["trained"].items())
            notes.append(
                f"{count:,} of {found['rows']:,} {split} rows were trained on, and scores on them reward memory "
                f"({kinds}): tables/contamination.csv names them."
            )
    return notes


def reservations(numbers: RunNumbers) -> list[str]:
    """What the figures of this run do not say, or say less surely than it looks."""
    record, account = numbers.record, numbers.ledger
    judged = record.get("verdict") or {}
    notes = ["One run, one seed: the intervals are over rows, and say nothing of another seed."]
    if judged.get("note"):
        notes.append(f"{judged['note']}.")
    if judged.get("best_step") is not None and "forgets" not in record:  # which keeps its newest adapter
        notes.append(
            f"The dev rows also chose the checkpoint (step {judged['best_step']}), which flatters the adapter."
        )
    phases = record.get("phases") or {}
    if phases.get("best") != phases.get("last"):
        notes.append(
            f"The best adapter comes from phase {phases['best'] or 0}, the last one from phase {phases['last']}: what "
            "later phases did is in last/, not in adapter/."
        )
    if account and account["rows"] is not None:
        drop = account["guide_loss_start"] - account["guide_loss_end"]
        if abs(account["residual"]) > 0.2 * abs(drop):
            notes.append(
                f"The account by rows leaves {account['residual']:+.3g} of {drop:+.3g} nats unexplained: trust the "
                "ranking of the rows and the account by group, not its terms."
            )
        notes += trusting.found(account)
        if account["unscored_rows"]:
            notes.append(f"{account['unscored_rows']} visits of rows have no value.")
    notes += trained_on(record)
    for split in splits_of(numbers):
        for who, alarm in numbers.evaluation[split].get("degenerate", {}).items():
            if alarm["alarm"]:
                bad = f"{alarm['share']['value']:.0%} of the {split} answers of {who}"
                notes.append(
                    f"{bad} look degenerate: {', '.join(f'{n} {fault}' for fault, n in alarm['faults'].items())}."
                )
    for split, cut in record.get("data", {}).get("cut_rows", {}).items():
        if cut:
            notes.append(f"{len(cut)} {split} rows were longer than the model may read and lost part of their context.")
    for split, count in record.get("data", {}).get("without_reasoning", {}).items():
        if count:
            notes.append(f"{count:,} {split} rows hold reasoning that the chat template leaves out.")
    notes += [f"{count:,} rows left out: {reason}." for reason, count in record.get("left_out", {}).items()]
    if without := record.get("without_rule"):
        names = [*without["names"], *without.get("found_in_the_first_pass", ())]
        notes.append(
            f"{len(names)} trained tensors have no rule for the gradients of single rows, which were measured "
            f"{without['measured']}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}."
        )
    if record.get("resumed"):
        notes.append(f"The run was resumed {len(record['resumed'])} times.")
    return notes
