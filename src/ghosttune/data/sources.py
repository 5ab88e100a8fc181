"""Where records come from: a user's file or folder, the shipped rows, a known dataset, or one on the hub."""

from __future__ import annotations

import difflib
import hashlib
import json
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttune.config.sections.data import RowsSettings
from ghosttune.data.files import Fields, Placed, fingerprint, kind_of, read_file, shown, unusable
from ghosttune.data.hub import hub_rows, is_hub_id
from ghosttune.data.preferences import PREFERENCE_COLUMNS
from ghosttune.data.records import (
    ID_COLUMNS,
    TURN_FORMATS,
    Records,
    detect_format,
    is_one_side,
    records_of,
    rename_columns,
)
from ghosttune.data.stored import Each, Stored, keys_of
from ghosttune.errors import DataError, TooFewRows, listed
from ghosttune.registry import DATASETS

if TYPE_CHECKING:
    from ghosttune.data.streaming import Windows

BUILTIN_ROWS = "builtin:rows"
SPLIT_NAMES = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "test": "test"}
"""Name of a file in a folder -> the split it holds."""

SPLIT_WORDS = {**SPLIT_NAMES, "guide": "guide"}
"""What a split column may hold -> the split."""


@dataclass(frozen=True)
class Source:
    """All records of a source, and what identifies the files they came from."""

    records: Records
    row_format: str
    fingerprints: dict[str, str]
    """File -> sha256 of its bytes."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows of the files that are no records, by reason."""
    in_blocks: Callable[[Any, int], Records] | None = None
    """Of a corpus: makes its records from the tokenizer and the length of a block."""
    parts: Mapping[str, Source] = field(default_factory=dict)
    """Of a mixture: each of its sources, by name."""
    stream: Windows | None = None
    """What goes on behind these records, where they are only the first of a stream."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits the source itself has, in the order of first appearance; empty when its rows name none."""
        return tuple(dict.fromkeys(split for split in self.records.splits if split))

    @property
    def has_turns(self) -> bool:
        """Whether any row is a conversation, plain text with User:/Assistant: marks included."""
        if self.parts:
            return any(part.has_turns for part in self.parts.values())
        if self.row_format in PREFERENCE_COLUMNS:
            return any(len(record.prompt) > 1 for record in self.records)
        return self.row_format == "messages" or (
            self.row_format == "text" and any(record.turns[0].role != "text" for record in self.records)
        )

    @property
    def has_lone_turns(self) -> bool:
        """Whether rows of plain text hold one side of a conversation each, as the lines of a .txt file do."""
        if self.parts:
            return any(part.has_lone_turns for part in self.parts.values())
        return self.row_format == "text" and any(is_one_side(record) for record in self.records)


IMAGE_TEXT = "image_text"
"""The known dataset whose rows show images."""


def open_source(settings: RowsSettings, formats: Sequence[str] = TURN_FORMATS, without: Collection[str] = ()) -> Source:
    """The records of a source in one of these formats; DataError when files are missing or rows cannot be used.

    Of a file or folder, the rows at the places in `without` are passed over.
    """
    if settings.name is not None and is_hub_id(settings.name):
        return read_hub(settings.name, settings, formats)
    if settings.name is not None:
        return _in_format(DATASETS[settings.name].build(settings.path), settings.name, formats)
    path = builtin_rows() if settings.path == BUILTIN_ROWS else Path(settings.path or "")
    return read_source(source_files(path), settings, formats, without)


def settings_of_file(path: str | Path, train: RowsSettings) -> RowsSettings:
    """A source that is a file or folder given outside of a configuration, named and read like the training rows.

    Of known datasets only rows that show images are read so: files of the others are rows of any format. DataError
    where its name cannot be used.
    """
    try:
        name = IMAGE_TEXT if train.name == IMAGE_TEXT and str(path) != BUILTIN_ROWS else None
        return RowsSettings(path=str(path), name=name, columns=None if name else train.columns)
    except ValueError as error:
        raise DataError(f"{str(path)!r}: a file of rows needs a name of UTF-8 without control characters") from error


def _in_format(source: Source, name: str, formats: Sequence[str]) -> Source:
    """The dataset as it is, or read anew from the columns it keeps beside its turns; DataError when it has neither."""
    if source.row_format in formats:
        return source
    rows = Each(source.records, lambda record: (record.place, {**record.metadata, "split": record.split}))
    try:
        row_format = detect_format(rows, formats)
    except DataError as error:
        raise DataError(f"the dataset {name} is not for this task: {error}") from error
    read = records_of(rows, row_format, (record.example_id for record in source.records))
    groups = zip(read, source.records, strict=True)
    records = Records.of(replace(record, group=known.group) for record, known in groups)
    return replace(source, row_format=row_format, records=records)


def builtin_rows() -> Path:
    """The fine-tuning rows that come with the package."""
    return Path(__file__).parent / "builtin" / "rows.jsonl"


def read_source(
    files: dict[str | None, Path],
    settings: RowsSettings,
    formats: Sequence[str] = TURN_FORMATS,
    without: Collection[str] = (),
) -> Source:
    """Records of the files, each file being one split, or (key None) one file whose rows may name their split."""
    parts = [(path.name.split(".")[0], split, read_file(path, without)) for split, path in files.items()]
    fingerprints = {str(path): fingerprint(path) for path in files.values()}
    return _source_of(parts, settings, fingerprints, formats, without)


def read_hub(name: str, settings: RowsSettings, formats: Sequence[str] = TURN_FORMATS) -> Source:
    """Records of a dataset on the Hugging Face hub; splits of other names than train, dev and test are counted."""
    found = hub_rows(name)
    known = {split: SPLIT_NAMES[split] for split in found if split in SPLIT_NAMES}
    if "train" not in found:
        raise DataError(f"{name} has no split train; it has {listed(found)}")
    parts = [(name.rpartition("/")[2], known[split], found[split].rows) for split in known]
    fingerprints = {f"{name} {split}": found[split].fingerprint for split in known}
    dropped = {f"split {split} of the hub": len(found[split].rows) for split in found if split not in known}
    return replace(_source_of(parts, settings, fingerprints, formats), dropped=dropped)


def _source_of(
    parts: Sequence[tuple[str, str | None, Sequence[Placed]]],
    settings: RowsSettings,
    fingerprints: dict[str, str],
    formats: Sequence[str],
    without: Collection[str] = (),
) -> Source:
    """One source of several (name, split, rows); ids are those that the rows have beside the ones passed over."""
    named: list[Sequence[Placed]] = []
    named_ids: list[Iterator[str]] = []
    for name, split, read in parts:
        places = array("q", (position for position, (place, _) in enumerate(read) if place not in without))
        if not places:
            raise TooFewRows(f"{name} holds no rows that can be used")
        used = Each(places, read.__getitem__)
        named.append(with_split(rename_columns(used, settings.columns or {}), split))
        named_ids.append(_ids(name, split, zip(places, used, named[-1], strict=True)))
    rows, ids = Stored(chain.from_iterable(named)), Stored(chain.from_iterable(named_ids))
    refuse_repeated(ids, rows)
    row_format = detect_format(rows, formats) if settings.format == "auto" else settings.format
    return Source(records_of(rows, row_format, ids), row_format, fingerprints)


def _ids(name: str, split: str | None, rows: Iterable[tuple[int, Placed, Placed]]) -> Iterator[str]:
    """The ids of (position, row as it was read, row as it is used)."""
    for position, (_, read), (_, used) in rows:
        yield row_id(used, read, name, split, position)


def row_id(used: Fields, read: Fields, dataset: str, split: str | None, position: int) -> str:
    """The id of a row: its own where it has one under its used names, else made from what was read and where."""
    return _own_id(used) or _derived_id(dataset, split, position, read)


def example_id(fields: Fields, dataset: str, split: str | None, position: int) -> str:
    """The id of a row: its own where it has one, else from dataset, split, position and content."""
    return row_id(fields, fields, dataset, split, position)


def _own_id(fields: Fields) -> str | None:
    for column in ID_COLUMNS:
        if isinstance(fields.get(column), str | int) and str(fields[column]).strip():
            return str(fields[column])
    return None


def _derived_id(dataset: str, split: str | None, position: int, fields: Fields) -> str:
    content = json.dumps(fields, sort_keys=True, ensure_ascii=False, default=str)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return "-".join([dataset, *([split] if split else []), f"{position:06d}", digest])


def refuse_repeated(ids: Sequence[str], rows: Sequence[Placed] = ()) -> None:
    """DataError when an id stands on more than one row; `rows` are those that have the ids."""
    import numpy as np

    keys = keys_of(ids)
    _, firsts, which = np.unique(keys, return_index=True, return_inverse=True)
    again = np.flatnonzero(firsts[which] != np.arange(len(keys))).tolist()
    if again:
        repeated = [ids[place] for place in np.unique(firsts[which[again]]).tolist()]
        raise DataError(
            f"{len(repeated)} ids stand on more than one row: {listed(repeated)}. Ids name rows in every table of a "
            "run; make them unique, or remove the column to have them derived.",
            {rows[place][0]: f"its id {ids[place]} stands on an earlier row" for place in again if rows},
        )


def with_split(rows: Sequence[Placed], of_file: str | None) -> Sequence[Placed]:
    """The rows with their split under its own name: that of their file, or what their split column says.

    DataError when the column holds another word, is empty on some rows, or contradicts the file.
    """
    if not any(_split_word(fields) for _, fields in rows):
        return Each(rows, lambda row: (row[0], {**row[1], "split": of_file} if of_file else _without_split(row[1])))
    faults = [
        f"{place}: split is {shown(fields.get('split'))}"
        for place, fields in rows
        if (split := _split(fields)) is None or of_file not in (None, split)
    ]
    if faults:
        accepted = f"{of_file}, as the file's name says," if of_file else listed(sorted(SPLIT_WORDS))
        title = (
            f"the split column must hold {accepted} on every row, or not exist (if it means something else, name it "
            "otherwise with data.train.columns: {other_name: split})"
        )
        raise unusable(title, faults)
    return Each(rows, lambda row: (row[0], {**row[1], "split": _split(row[1])}))


def _without_split(fields: Fields) -> Fields:
    return {name: value for name, value in fields.items() if name != "split"} if "split" in fields else fields


def _split(fields: Fields) -> str | None:
    return SPLIT_WORDS.get(_split_word(fields))


def _split_word(fields: Fields) -> str:
    value = fields.get("split")
    return "" if value is None else str(value).strip().lower()


def source_files(path: Path) -> dict[str | None, Path]:
    """The file itself, or the files of a folder by the split they are named after."""
    try:
        if not path.exists():
            raise DataError(f"{path} does not exist{_beside(path)}")
        children = sorted(path.iterdir()) if path.is_dir() else []
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not path.is_dir():
        return {None: path}
    named = {child: SPLIT_NAMES.get(child.name.split(".")[0].lower()) for child in children if kind_of(child)}
    found: dict[str | None, Path] = {}
    for child, split in named.items():
        if split in found:
            raise DataError(f"{path} holds two files for {split}: {found[split].name} and {child.name}")
        if split is not None:
            found[split] = child
    if "train" not in found:
        have = listed(child.name for child in children) or "nothing"
        raise DataError(f"{path} holds no train file (train.jsonl, train.csv, …); it holds {have}")
    return found


def _beside(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f", nor does the folder {parent}"
    names = [child.name for child in sorted(parent.iterdir()) if child.is_dir() or kind_of(child)]
    stems = {name.split(".")[0]: name for name in reversed(names)}
    close = difflib.get_close_matches(path.name.split(".")[0], stems, n=1)
    hint = f"; did you mean {stems[close[0]]}?" if close else ""
    return f"{hint}; {parent} holds {listed(names) or 'no readable files'}"
