"""A model card for the hub, made from what a run recorded: nothing in it was written by hand, or is guessed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ghosttune.config.schema import RunConfig
from ghosttune.reports.evaluation import splits_of
from ghosttune.reports.reading import RunNumbers
from ghosttune.reports.verdict import VERDICTS, interval, reservations

MOST = 10
"""Modules, and rows at either end, that a card names."""

RECIPE = ("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")
RECIPE += ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm")

UNKNOWN = "not recorded: state it before you publish"


def model_card(
    numbers: RunNumbers, config: RunConfig, library: str, base: str, base_licence: str | None, data_licence: str
) -> str:
    """README.md of a repository: Markdown under the hub's front matter.

    Rows are named by their ids; their texts, and folders of the machine that trained, are not in it. `library`
    loads the files: peft or transformers. `base` is the hub's id of the base, or a name that it is known by elsewhere.
    """
    record = numbers.record
    parts = [
        _front_matter(config, library, base, base_licence),
        f"# {base.rpartition('/')[2]}, tuned with {config.method.type}",
        f"Made by [ghosttune](https://pypi.org/project/ghosttune) {record['ghosttune']} from the run's own record.",
        *_verdict(numbers),
        *_scores(numbers),
        *_mattered(numbers),
        "## Recipe",
        _table(("setting", "value"), _recipe(config, record)),
        "## Data",
        _table(("split", "rows", "tokens"), ((s, n, record["data"]["tokens"].get(s, "")) for s, n in _rows(record))),
        "Of each file its sha256, as it was read:",
        _table(("file", "sha256"), ((Path(name).name, sha) for name, sha in record["data"]["fingerprints"].items())),
        "## Licences",
        _table(("of", "licence"), (("base model", base_licence or UNKNOWN), ("training data", data_licence))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(config: RunConfig, library: str, base: str, licence: str | None) -> str:
    facts = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["ghosttune", config.method.type],
    }
    if "/" in base:
        facts["base_model"] = base
    if licence:
        facts["license"] = licence
    return "---\n" + "\n".join(f"{name}: {json.dumps(value)}" for name, value in facts.items()) + "\n---"


def _verdict(numbers: RunNumbers) -> list[str]:
    judged = numbers.record.get("verdict")
    if not judged:
        return ["## Verdict", f"None: the run's status is {numbers.record['status']}."]
    said = (
        f"Dev loss per target {judged['dev_loss_base']:.4g} -> {judged['dev_loss']:.4g} nats; change "
        f"{interval(judged['change'])}, 95 % interval over {judged['change']['n']} dev rows."
    )
    notes = "\n".join(f"* {note}" for note in reservations(numbers))
    return ["## Verdict", f"{VERDICTS[judged['verdict']]} {said}", "Before concluding anything:", notes]


def _scores(numbers: RunNumbers) -> list[str]:
    rows = [
        (split, metric, who, interval(score), score["n"])
        for split, systems in splits_of(numbers).items()
        for who, scores in systems.items()
        for metric, score in scores.items()
    ]
    return ["## Answers", _table(("split", "metric", "of", "score (95 %)", "rows"), rows)] if rows else []


def _mattered(numbers: RunNumbers) -> list[str]:
    """What lowered the held-out loss, as the ledger counted it."""
    parts = []
    modules = sorted(numbers.export("modules"), key=lambda row: -float(row["guide_loss_drop"]))
    if modules:
        shown = [
            (m["module"], f"{float(m['guide_loss_drop']):+.3g}", f"{float(m['share']):.1%}") for m in modules[:MOST]
        ]
        parts += [
            f"## Modules that mattered ({len(shown)} of {len(modules)})",
            "Nats of the guide loss that each took away.",
        ]
        parts.append(_table(("module", "nats", "share"), shown))
    rows = sorted((r for r in numbers.export("values") if r["standing"]), key=lambda row: float(row["standing"]))
    if rows:
        ends = [("lowest", row) for row in rows[:MOST]] + [("highest", row) for row in rows[-MOST:][::-1]]
        parts += ["## Rows that mattered", f"Of {len(rows)} rows those at either end of the ledger, by their ids."]
        parts.append(
            _table(("end", "row", "standing"), ((e, r["example_id"], f"{float(r['standing']):.3g}") for e, r in ends))
        )
    return parts


def _recipe(config: RunConfig, record: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    yield (
        "base",
        f"{record['model']['name'].rpartition('/')[2]}, revision {record['model'].get('revision') or 'not pinned'}",
    )
    yield from ((f"method.{name}", value) for name, value in config.method.model_dump().items() if value is not None)
    yield from (
        (f"train.{name}", getattr(config.train, name)) for name in RECIPE if getattr(config.train, name) is not None
    )
    yield "data.template", config.data.template
    yield "steps taken", record["step"]
    yield "seed", record["seed"]
    yield "packages", ", ".join(f"{n} {v}" for n, v in record["environment"]["packages"].items())


def _rows(record: dict[str, Any]) -> Iterable[tuple[str, int]]:
    return record["data"]["rows"].items()


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(_cell(cell) for cell in cells) + " |"

    head = list(head)
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def _cell(value: Any) -> str:
    """A value that cannot end its cell, or be taken for markup."""
    text = str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return text.replace("<", "&lt;").replace("`", "'")
