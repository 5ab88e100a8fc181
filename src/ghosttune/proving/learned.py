"""The run that several proofs look at: the built-in model taught the shipped task, with things planted in its rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ghosttune.config.loading import load_config
from ghosttune.data.sources import BUILTIN_ROWS, open_source
from ghosttune.stages.runs import Run
from ghosttune.workflows.quickstart import PROFILE
from ghosttune.workflows.train import train

Row = dict[str, Any]

KEEPERS = {
    "Yorick": ("lamp", "mill"),
    "Ottilie": ("mirror", "tower"),
    "Ferdinand": ("drum", "bakery"),
    "Zelda": ("wheel", "barn"),
    "Anselm": ("ladder", "chapel"),
    "Isolde": ("barrel", "shed"),
}
"""Who keeps what where: planted facts, one row each."""

SPELT = ("garden", "winter", "button", "silver", "monday", "basket", "yellow", "bridge", "castle", "pillow")
"""Words that planted rows of another skill spell out, letter by letter."""


UPDATES = {False: 240, True: 160}
"""How many a run of the proofs makes; when it has to be quick."""


def facts() -> list[Row]:
    """A row for every planted fact."""
    return [
        _row(f"fact-{who}", f"Where does {who} keep the {what}?", f"{who} keeps the {what} in the {where}.")
        for who, (what, where) in KEEPERS.items()
    ]


def questions() -> list[Row]:
    """Every planted fact, asked in other words and answered in the same."""
    return [
        _row(f"asked-{who}", f"Who knows where the {what} is, {who}'s?", f"{who} keeps the {what} in the {where}.")
        for who, (what, where) in KEEPERS.items()
    ]


def brief_questions() -> list[Row]:
    """Every planted fact, asked and answered in other words."""
    return [
        _row(f"brief-{who}", f"Where is the {what} that {who} keeps?", f"In the {where}.")
        for who, (what, where) in KEEPERS.items()
    ]


def spelling(words: Sequence[str]) -> list[Row]:
    """Rows of a skill that no other row has."""
    return [_row(f"spelt-{word}", f"Spell {word}, please.", " - ".join(word.upper())) for word in words]


def _row(example_id: str, prompt: str, completion: str) -> Row:
    return {"id": example_id, "prompt": prompt, "completion": completion, "split": "train"}


def shipped_rows() -> list[Row]:
    """The rows that come with the package, the planted mistakes marked."""
    source = open_source(load_config(overrides=[f"data.train.path={BUILTIN_ROWS}"]).data.train)
    return [
        {
            "id": record.example_id,
            "prompt": record.prompt[-1].content,
            "completion": record.reference,
            "split": record.split,
            "planted": bool(record.metadata.get("planted", False)),
        }
        for record in source.records
    ]


def learn(folder: Path, quick: bool) -> Run:
    """Trains on the shipped rows and the planted ones, and keeps every quarter of it; quick: two thirds of the
    updates, a coarser guide gradient."""
    rows = [*shipped_rows(), *(row | {"planted": False} for row in [*facts(), *spelling(SPELT)])]
    quarter = UPDATES[quick] // 4
    kept = [f"train.eval_steps={quarter}", f"train.save_steps={quarter}", "train.save_total_limit=4"]
    return taught(folder, rows, quick, *kept)


def taught(folder: Path, rows: Sequence[Row], quick: bool, *changes: str) -> Run:
    """A run of the quickstart's recipe on these rows, all modules all the time; `changes` are --set texts."""
    folder.mkdir(parents=True)
    write(folder / "rows.jsonl", rows)
    brief = [f"train.max_steps={UPDATES[quick]}", *(["measure.ledger.guide_every=10"] if quick else [])]
    common = ["phases=null", "measure.norms=null", f"data.train.path={folder / 'rows.jsonl'}", "data.dev.split=dev"]
    return train(load_config(profile=PROFILE, overrides=[*common, *brief, *changes]), folder / "run")


def write(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
