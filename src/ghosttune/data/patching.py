"""Changes to the rows of a run, kept in a file beside the data: rows dropped, edited, repeated, flagged and added.

A line of JSON per row, `example_id` beside what happens to it:

    {"example_id": "rows-000007-1f2e3d4c", "drop": true, "note": "says the opposite of the manual"}
    {"example_id": "rows-000008-5b6a7988", "edit": {"completion": "The right answer."}, "weight": 3}
    {"example_id": "rows-000009-0a1b2c3d", "flag": "ask somebody"}
    {"example_id": "patch-1", "add": {"prompt": "…", "completion": "…"}, "split": "guide"}

The data are never written. Changes are made after the splits are drawn, so that the rows that judge stay the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ghosttune.data.columns import RowFault
from ghosttune.data.files import Fields, read_file, shown
from ghosttune.data.labelled import LABELLED_COLUMNS
from ghosttune.data.records import IMAGE, TURN_FORMATS, Record, Records, detect_format, each_record
from ghosttune.data.turns import Turn
from ghosttune.errors import DataError, listed, listed_faults

KEYS = ("example_id", "drop", "edit", "weight", "flag", "add", "split", "note")
"""What a line may hold; `note` is for people."""

SPLITS = ("train", "guide")
"""Where an added row may go: rows that judge are not changed."""

MOST = 1000
"""Times that a row may come in an epoch."""


@dataclass(frozen=True)
class Change:
    """What happens to one row."""

    example_id: str
    place: str
    """Of its line, for messages."""
    drop: bool = False
    edit: Fields | None = None
    """The row anew, in a format of the task; or its `completion` alone, or some of its columns."""
    weight: int = 1
    """How often the row comes in an epoch."""
    flag: str | None = None
    """Why somebody should look at it; it trains as it is."""
    add: Fields | None = None
    """A row that the data does not have."""
    split: str = "train"


@dataclass(frozen=True)
class Patched:
    """Rows with the changes made."""

    train: Records
    guide: Records
    weights: Mapping[str, int]
    """Id -> how often the row comes in an epoch, of those that come more than once."""
    counts: Mapping[str, int]
    """What was done -> to how many rows; `elsewhere` are rows of the data that do not train in this run."""


def read_patch(path: Path) -> list[Change]:
    """The changes of a file, one per row; DataError names every line that is none, and ids that stand twice."""
    if not path.is_file():
        raise DataError(f"data.train.patch {path} is not a file")
    changes: list[Change] = []
    faults: list[str] = []
    for place, fields in read_file(path):
        try:
            changes.append(change_of(fields, place))
        except RowFault as fault:
            faults.append(f"{place}: {fault}")
    twice = [name for name, count in Counter(change.example_id for change in changes).items() if count > 1]
    faults += [f"{path.name}: {name} stands in several lines; say all of it in one" for name in twice]
    if faults:
        raise DataError(listed_faults(f"data.train.patch {path} cannot be used", faults))
    return changes


def change_of(fields: Fields, place: str) -> Change:
    """The change that a line holds; RowFault says why it holds none."""
    if unknown := [name for name in fields if name not in KEYS]:
        raise RowFault(f"holds {listed(unknown)}; a line of a patch has {listed(KEYS)}")
    name = fields.get("example_id")
    if not isinstance(name, str) or not name.strip():
        raise RowFault(f"example_id must be the id of a row, is {shown(name)}")
    change = Change(
        name,
        place,
        drop=_of_kind(fields, "drop", bool, "true or false") or False,
        edit=_of_kind(fields, "edit", dict, "an object: the row anew, or its completion"),
        weight=_weight(fields),
        flag=_of_kind(fields, "flag", str, "text"),
        add=_of_kind(fields, "add", dict, "an object: the row"),
        split=fields.get("split") or "train",
    )
    _require_sense(change, fields)
    return change


def _of_kind(fields: Fields, name: str, kind: type, accepted: str) -> Any:
    value = fields.get(name)
    if value is not None and not isinstance(value, kind):
        raise RowFault(f"{name} must be {accepted}, is {shown(value)}")
    return value


def _weight(fields: Fields) -> int:
    value = fields.get("weight")
    if value is None:
        return 1
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
        raise RowFault(f"weight must be a whole number from 1 to {MOST}, the times in an epoch, is {shown(value)}")
    return value


def _require_sense(change: Change, fields: Fields) -> None:
    others = [name for name in ("edit", "weight", "add") if fields.get(name) is not None]
    if change.drop and others:
        raise RowFault(f"drops the row, and has {listed(others)} beside that; keep one of the two")
    if change.add is not None and change.edit is not None:
        raise RowFault("adds a row and edits it; write the row as it shall be into add")
    if change.split not in SPLITS:
        raise RowFault(f"split must be {' or '.join(SPLITS)}, is {shown(fields['split'])}")
    if fields.get("split") is not None and change.add is None:
        raise RowFault("split is for rows that are added; other rows keep theirs")
    if change.split == "guide" and change.weight > 1:
        raise RowFault("weight is for rows that train; a guide row counts once")
    if not (change.drop or others or change.flag is not None):
        raise RowFault("says of no change: give drop, edit, weight, flag or add")


def patched(
    path: Path, train: Records, guide: Records, known: Records, formats: Sequence[str], mixture: bool
) -> Patched:
    """The rows that train and guide with the changes of the file.

    `known` are all rows of the data, `formats` those of the task, and `mixture` says whether shares of sources decide
    how often rows come. DataError for ids that the data do not have, for rows that cannot be read, and for none left.
    """
    changes = {change.example_id: change for change in read_patch(path)}
    own = {record.example_id for record in known}
    faults = list(_misnamed(changes, own))
    weights = {name: change.weight for name, change in changes.items() if change.weight > 1}
    if mixture and weights:
        faults.append(f"{listed(weights, 5)}: weight cannot be beside data.train.sources, which say what is repeated")
    here = {record.example_id for record in train}
    rows = list(_changed(train, changes, formats, faults))
    added = {split: list(_added(changes.values(), split, formats, faults)) for split in SPLITS}
    if faults:
        raise DataError(listed_faults(f"data.train.patch {path} does not fit the data", faults))
    if not (rows or added["train"]):
        raise DataError(f"data.train.patch {path} drops all {len(train)} rows that train")
    made = [change for name, change in changes.items() if name in here or change.add is not None]
    return Patched(
        Records.of([*rows, *added["train"]]),
        Records.of([*guide, *added["guide"]]) if added["guide"] else guide,
        {change.example_id: change.weight for change in made if change.weight > 1},
        {**_counted(made), "elsewhere": len(changes) - len(made)},
    )


def _misnamed(changes: Mapping[str, Change], own: set[str]) -> Iterator[str]:
    for name, change in changes.items():
        if change.add is None and name not in own:
            yield f"{change.place}: the data has no row {name!r}; a run's splits.csv has the ids of all its rows"
        if change.add is not None and name in own:
            yield f"{change.place}: the data has a row {name!r}; give the row that is added another example_id"


def _counted(changes: Sequence[Change]) -> dict[str, int]:
    return {
        "dropped": sum(change.drop for change in changes),
        "edited": sum(change.edit is not None for change in changes),
        "weighted": sum(change.weight > 1 for change in changes),
        "flagged": sum(change.flag is not None for change in changes),
        "added": sum(change.add is not None and change.split == "train" for change in changes),
        "added_to_guide": sum(change.add is not None and change.split == "guide" for change in changes),
    }


def _changed(
    rows: Records, changes: Mapping[str, Change], formats: Sequence[str], faults: list[str]
) -> Iterator[Record]:
    for record in rows:
        change = changes.get(record.example_id)
        if change is None or (change.edit is None and not change.drop):
            yield record
        elif change.edit is not None:
            try:
                yield edited(record, change.edit, change.place, formats)
            except (RowFault, DataError) as fault:
                faults.append(f"{change.place}: {fault}")


def _added(changes: Iterator[Change] | Any, split: str, formats: Sequence[str], faults: list[str]) -> Iterator[Record]:
    for change in changes:
        if change.add is not None and change.split == split:
            try:
                yield _read(change.example_id, change.add, change.place, formats)
            except (RowFault, DataError) as fault:
                faults.append(f"{change.place}: {fault}")


def edited(record: Record, edit: Fields, place: str, formats: Sequence[str]) -> Record:
    """The row as it is after the edit, with the id and the columns of its own that it had.

    RowFault or DataError where it cannot be edited so.
    """
    if record.tokens is not None:
        raise RowFault("is a block of a corpus; edit the text that it was cut from")
    if IMAGE in record.columns:
        raise RowFault("shows an image; edit the file of the rows")
    if record.turns and set(edit) == {"completion"}:
        return _with_answer(record, edit["completion"])
    fields = edit
    if not record.turns and any(set(edit) < set(columns) for columns in LABELLED_COLUMNS.values()):
        fields = {**record.columns, **edit}
    new = _read(record.example_id, fields, place, formats)
    return replace(new, split=record.split, metadata={**record.metadata, **new.metadata})


def _with_answer(record: Record, answer: Any) -> Record:
    if not isinstance(answer, str) or not answer.strip():
        raise RowFault(f"completion must be text, is {shown(answer)}")
    if record.turns[-1].role != "assistant" or "rejected" in record.columns:
        raise RowFault("has no single answer to replace; give the row anew")
    return replace(record, turns=(*record.turns[:-1], Turn("assistant", answer)))


def _read(example_id: str, fields: Fields, place: str, formats: Sequence[str]) -> Record:
    """The row of these fields; RowFault or DataError where they are none."""
    known = [*formats, *(name for name in TURN_FORMATS if name not in formats and set(formats) & set(TURN_FORMATS))]
    (record,) = each_record([(example_id, (place, fields))], detect_format([(place, fields)], known))
    return record
