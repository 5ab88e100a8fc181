"""The run that several proofs look at: the built-in model taught the shipped task, with things planted in its rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ghosttune.config.loading import load_config
from ghosttune.data.sources import BUILTIN_ROWS, open_source
from ghosttune.models.loading import load_adapter, load_model
from ghosttune.workflows.prepare import Prepared, prepare, task_of
from ghosttune.workflows.quickstart import PROFILE
from ghosttune.workflows.runs import Run
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


@dataclass
class Learned:
    """A finished run, its rows as features, and its model."""

    run: Run
    quick: bool

    @cached_property
    def prepared(self) -> Prepared:
        return prepare(self.run.config)

    @cached_property
    def model(self) -> Any:
        """The base with the last adapter, as the run left it."""
        return model_of(self.run)

    def features(self, rows: Sequence[Row]) -> list[Any]:
        """Rows that the run need not have seen, as it would have seen them."""
        path = self.run.path.parent / "asked.jsonl"
        write(path, rows)
        records = open_source(load_config(overrides=[f"data.train.path={path}"]).data.train).records
        return list(self.prepared.encoder.encode(records).features)


def model_of(run: Run) -> Any:
    """The base with the last adapter of a run."""
    task = task_of(run.config)
    kind = task.kind(prepare(run.config).encoder.template.tokenizer)  # type: ignore[union-attr]
    return load_adapter(load_model(run.config.model, run.config.train.seed, kind), run.folder.last).eval()


def learn(folder: Path, quick: bool) -> Learned:
    """Trains on the shipped rows and the planted ones; quick: two thirds of the updates, a coarser guide gradient."""
    rows = [*shipped_rows(), *(row | {"planted": False} for row in [*facts(), *spelling(SPELT)])]
    return Learned(taught(folder, rows, quick), quick)


def taught(folder: Path, rows: Sequence[Row], quick: bool, *changes: str) -> Run:
    """A run of the quickstart's recipe on these rows, all modules all the time; `changes` are --set texts."""
    folder.mkdir(parents=True)
    write(folder / "rows.jsonl", rows)
    brief = ["train.max_steps=160", "measure.ledger.guide_every=10"] if quick else []
    common = ["phases=null", "measure.norms=null", f"data.train.path={folder / 'rows.jsonl'}", "data.dev.split=dev"]
    return train(load_config(profile=PROFILE, overrides=[*common, *brief, *changes]), folder / "run")


def write(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
