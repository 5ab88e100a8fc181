"""A known dataset: what is published about it, and how its rows become prompts and completions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ghosttune.data.fetching import KnownFile, located
from ghosttune.data.files import Fields, Placed, fingerprint, shown, unusable
from ghosttune.data.records import Record, Records, RowFault, each_record
from ghosttune.data.sources import Source, example_id
from ghosttune.errors import DataError, listed

JUDGES = {"train": ("test", "dev", "dev_mismatched"), "dev": ("test",)}
"""Split -> the splits that judge it."""


class LeftOut(Exception):
    """Why a published row is not used; such rows are counted by reason."""


def texts(fields: Fields, *columns: str) -> Fields:
    """The fields; RowFault when one of these columns is missing or holds something else than text."""
    for column in columns:
        if not isinstance(fields.get(column), str):
            raise RowFault(f"{column} must be text, is {shown(fields.get(column))}")
    return fields


def as_published(fields: Fields) -> Fields:
    return fields


def nothing_else(file: Path) -> list[Path]:
    return []


@dataclass(frozen=True)
class KnownDataset:
    """What `ghosttune show datasets` prints, and how a published row is read."""

    title: str
    source: str
    """Page of the publishers."""
    revision: str
    licence: str
    files: dict[str, KnownFile]
    """Split -> file."""
    columns: tuple[str, ...]
    """Fields of a row that the wording and the tasks need; kept with every row."""
    prompt: str
    """What the model is given, with {columns} in it."""
    completion: str
    """What it must produce, its stop token not written here."""
    metrics: tuple[str, ...]
    anchor: str
    """A published score to compare with."""
    group: str | None = None
    """Column whose equal values never cross a split; None: the prompt."""
    stop: str = "the template's stop token stands behind every completion and is trained"
    labels: tuple[str, ...] = ()
    """What the column `label` can be, in the order of the published numbers."""
    wording: dict[str, str] = field(default_factory=dict)
    """Name in `prompt` that `clean` makes of several columns -> what it holds."""
    kept: tuple[str, ...] = ()
    """Further columns that are kept where a row has them."""
    other_names: tuple[tuple[str, str], ...] = ()
    """(published name, our column)."""
    clean: Callable[[Fields], Fields] = as_published
    """A published row under our names -> its fields; raises LeftOut, or RowFault with what is wrong."""
    also_read: Callable[[Path], list[Path]] = nothing_else
    """A file of rows -> the other files that its rows are made from."""

    def open(self, name: str, path: str | None) -> Source:
        """The rows of a folder with all files, of the cache, or of one file in the published layout (no splits then).

        Rows that train and also judge (equal groups) are left out of the training rows, and counted.
        """
        files = self.files_at(name, path)
        dropped: Counter[str] = Counter()
        records = Records.of(record for file in files for record in self._records(name, *file, dropped))
        kept, shared = without_judges(records)
        read_from = [each for _, file, _ in files for each in (file, *self.also_read(file))]
        fingerprints = {str(file): fingerprint(file) for file in read_from}
        return Source(kept, "prompt_completion", fingerprints, dict(dropped + shared))

    def files_at(self, name: str, path: str | None) -> list[tuple[str | None, Path, KnownFile]]:
        if path is not None and Path(path).is_file():
            file = Path(path)
            known = next((known for known in self.files.values() if _stem(known.name) == _stem(file.name)), None)
            return [(None, file, known or next(iter(self.files.values())))]
        found = located(name, self.files, self.revision, path)
        return [(split, file, self.files[split]) for split, file in found.items()]

    def _records(
        self, name: str, split: str | None, file: Path, known: KnownFile, dropped: Counter[str]
    ) -> Iterator[Record]:
        """The rows of one file; counts those that are left out, by reason, and DataError lists those that are wrong."""
        rows = known.read(file)
        self.require_columns(file, rows)
        return each_record(self._asked(name, split, file, rows, dropped), "prompt_completion", self.group)

    def _asked(
        self, name: str, split: str | None, file: Path, rows: Sequence[Placed], dropped: Counter[str]
    ) -> Iterator[tuple[str, Placed]]:
        """(id, the row as prompt and completion) of each row that is used."""
        faults: list[str] = []
        for position, (place, fields) in enumerate(rows):
            try:
                asked = self.asked(self.clean(self._named(fields)), split)
                yield example_id(fields, name, split, position), (place, asked)
            except LeftOut as reason:
                dropped[str(reason)] += 1
            except RowFault as fault:
                faults.append(f"{place}: {fault}")
        if faults:
            raise unusable(f"{file}: {len(faults)} of {len(rows)} rows cannot be used", faults)

    def asked(self, fields: Fields, split: str | None = None) -> Fields:
        """A row of our columns as prompt and completion; RowFault when the label is unknown."""
        if self.labels:
            fields = fields | {"label": self.label(fields["label"])}
        kept = {name: fields[name] for name in (*self.columns, *self.kept) if name in fields}
        own_split = {"split": split} if split else {}
        words = {"prompt": self.prompt.format_map(fields), "completion": self.completion.format_map(fields)}
        return kept | own_split | words

    def label(self, value: Any) -> str:
        """The word for a published label: its number, its number as text, or the word; RowFault otherwise."""
        words = dict(enumerate(self.labels)) | {str(number): word for number, word in enumerate(self.labels)}
        words |= {word: word for word in self.labels}
        if isinstance(value, bool) or not isinstance(value, int | str) or value not in words:
            raise RowFault(f"label must be one of {listed(self.labels)} or its number from 0, is {shown(value)}")
        return words[value]

    def require_columns(self, file: Path, rows: Sequence[Placed]) -> None:
        """DataError when the first row of the file lacks columns that the published one has."""
        has = rows[0][1]
        lacking = [column for column in self.columns if column not in self._named(has)]
        if lacking:
            raise DataError(f"{file} lacks the columns {listed(lacking)}; it has {listed(has)}")

    def _named(self, fields: Fields) -> Fields:
        """The row under our names."""
        names = {theirs: ours for theirs, ours in self.other_names if ours not in fields}
        return {names.get(name, name): value for name, value in fields.items()}

    def facts(self) -> dict[str, Any]:
        """What `show datasets NAME` prints, the files last."""
        facts = {
            "title": self.title,
            "source": self.source,
            "revision": self.revision,
            "licence": self.licence,
            "columns": list(self.columns),
            "labels": list(self.labels),
            "group": self.group or "the prompt",
            "prompt": self.prompt,
            **{f"{{{name}}}": meaning for name, meaning in self.wording.items()},
            "completion": self.completion,
            "stop": self.stop,
            "metrics": list(self.metrics),
            "anchor": self.anchor,
            "files": [line for split, file in self.files.items() for line in _lines(split, file)],
        }
        return {name: value for name, value in facts.items() if value}


def without_judges(records: Records) -> tuple[Records, Counter[str]]:
    """The records without training rows whose group also stands in dev or test, and how many those were.

    Published splits overlap here and there; a training row that asks what a judge asks would reward memory. For the
    same reason dev rows that also stand in test are left out.
    """
    import numpy as np

    kept = np.ones(len(records), bool)
    dropped: Counter[str] = Counter()
    for split, judges in JUDGES.items():
        for judge in judges:
            asked = np.isin(records.groups, records.of_split(judge).groups)
            shared = kept & np.equal(records.splits, split) & asked
            dropped[f"{split} rows that ask the same as a {judge} row"] += int(shared.sum())
            kept &= ~shared
    return records.where(kept), +dropped


def _stem(name: str) -> str:
    return name.removesuffix(".gz").rpartition(".")[0]


def _lines(split: str, file: KnownFile) -> list[str]:
    rows = f"{file.rows:,} rows, " if file.rows else ""
    where = f"{file.archive.url} ({file.member})" if file.archive else file.url
    return [f"{split}: {file.name}, {rows}{where}", *(line for other in file.beside for line in _lines(split, other))]
