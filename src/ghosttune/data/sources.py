"""Where records come from: a user's file or folder, the shipped rows, or a known dataset."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ghosttune.config.schema import SourceSettings
from ghosttune.data.files import Fields, Placed, fingerprint, kind_of, listed_faults, read_file
from ghosttune.data.records import ID_COLUMNS, Record, detect_format, records_of, rename_columns
from ghosttune.errors import DataError, listed
from ghosttune.registry import DATASETS

BUILTIN_ROWS = "builtin:rows"
SPLIT_NAMES = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "test": "test"}


@dataclass(frozen=True)
class Source:
    """All records of a source, and what identifies the files they came from."""

    records: list[Record]
    row_format: str
    fingerprints: dict[str, str]
    """File -> sha256 of its bytes."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits the source itself has, in the order of first appearance; empty when its rows name none."""
        return tuple(dict.fromkeys(record.split for record in self.records if record.split))


def open_source(settings: SourceSettings) -> Source:
    """The records of a source; DataError when files are missing or rows cannot be used."""
    if settings.name is not None:
        return DATASETS[settings.name].build(settings.path)
    files = {None: builtin_rows()} if settings.path == BUILTIN_ROWS else _files(Path(settings.path or ""))
    return read_source(files, settings)


def builtin_rows() -> Path:
    """The fine-tuning rows that come with the package."""
    return Path(__file__).parent / "builtin" / "rows.jsonl"


def read_source(files: dict[str | None, Path], settings: SourceSettings) -> Source:
    """Records of the files, each file being one split, or (key None) one file whose rows may name their split."""
    rows: list[Placed] = []
    ids: list[str] = []
    for split, path in files.items():
        read = read_file(path)
        if split is not None:
            read = [(place, {**fields, "split": split}) for place, fields in read]
        ids += example_ids(read, path.name.split(".")[0], split)
        rows += read
    _refuse_repeated(ids)
    _refuse_unknown_splits(rows)
    if settings.columns:
        rows = rename_columns(rows, settings.columns)
    row_format = detect_format(rows) if settings.format == "auto" else settings.format
    fingerprints = {str(path): fingerprint(path) for path in files.values()}
    return Source(records_of(rows, row_format, ids), row_format, fingerprints)


def example_ids(rows: list[Placed], dataset: str, split: str | None) -> list[str]:
    """The id of each row: its own where it has one, else from dataset, split, position and content."""
    return [
        _own_id(fields) or _derived_id(dataset, split, position, fields) for position, (_, fields) in enumerate(rows)
    ]


def _own_id(fields: Fields) -> str | None:
    for column in ID_COLUMNS:
        if isinstance(fields.get(column), str | int) and str(fields[column]).strip():
            return str(fields[column])
    return None


def _derived_id(dataset: str, split: str | None, position: int, fields: Fields) -> str:
    content = json.dumps(fields, sort_keys=True, ensure_ascii=False, default=str)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return "-".join([dataset, *([split] if split else []), f"{position:06d}", digest])


def _refuse_repeated(ids: list[str]) -> None:
    repeated = [example_id for example_id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(
            f"{len(repeated)} ids stand on more than one row: {listed(repeated)}. Ids name rows in every table of a run; "
            "make them unique, or remove the column to have them derived."
        )


def _refuse_unknown_splits(rows: list[Placed]) -> None:
    named = [(place, fields.get("split")) for place, fields in rows if fields.get("split") not in (None, "")]
    known = {*SPLIT_NAMES.values(), "guide"}
    faults = [f"{place}: split {split!r}" for place, split in named if split not in known]
    faults += [f"{place}: no split" for place, fields in rows if named and fields.get("split") in (None, "")]
    if faults:
        raise DataError(
            listed_faults(f"the split column must hold {listed(sorted(known))} on every row, or not exist", faults)
        )


def _files(path: Path) -> dict[str | None, Path]:
    """The file itself, or the files of a folder by the split they are named after."""
    if path.is_file():
        return {None: path}
    if not path.exists():
        raise DataError(f"{path} does not exist{_beside(path)}")
    named = {
        child: SPLIT_NAMES.get(child.name.split(".")[0].lower()) for child in sorted(path.iterdir()) if kind_of(child)
    }
    found: dict[str | None, Path] = {}
    for child, split in named.items():
        if split in found:
            raise DataError(f"{path} holds two files for {split}: {found[split].name} and {child.name}")
        if split is not None:
            found[split] = child
    if "train" not in found:
        have = listed(child.name for child in sorted(path.iterdir())) or "nothing"
        raise DataError(f"{path} holds no train file (train.jsonl, train.csv, …); it holds {have}")
    return found


def _beside(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f", nor does the folder {parent}"
    names = [child.name for child in sorted(parent.iterdir()) if child.is_dir() or kind_of(child)]
    return f"; {parent} holds {listed(names)}" if names else f"; {parent} holds no readable files"
