"""A row as every task sees it: turns with roles, a stable id, a group, and the columns nobody needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ghosttune.data.columns import RowFault, request, text_of
from ghosttune.data.files import Fields, Placed, unusable
from ghosttune.data.labelled import LABELLED_COLUMNS, READ_LABELLED
from ghosttune.data.messages import (
    MESSAGES,
    SHAREGPT,
    columns_beside,
    conversation_column,
    role_of,
    turns_of_messages,
)
from ghosttune.data.preferences import PREFERENCE_COLUMNS, PREFERENCES_READ, READ_PREFERENCES
from ghosttune.data.showing import IMAGE, placed, showing, with_marks
from ghosttune.data.stored import Each, Stored, key_of, keys_in
from ghosttune.data.turns import IMAGE_MARK, TOOLS, Turn, images_of
from ghosttune.errors import DataError, listed

if TYPE_CHECKING:
    import numpy as np

ID_COLUMNS = ("example_id", "id")


@dataclass(frozen=True)
class Record:
    """One example."""

    example_id: str
    turns: tuple[Turn, ...]
    """Empty for rows of tasks that read columns instead."""
    group: str
    """Rows of one group never straddle two splits."""
    split: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    place: str = ""
    tokens: np.ndarray | None = None
    """[T] of a block of a corpus, in place of turns to render."""
    columns: dict[str, Any] = field(default_factory=dict)
    """What a row without turns consists of, such as text and label; beside turns, the answer that was rejected, or
    whether theirs is wanted."""

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """The turns before the last answer: what the model is asked at evaluation."""
        return self.turns[:-1] if self.turns[-1].role == "assistant" else self.turns

    @property
    def reference(self) -> str | None:
        """The last answer, calls as JSON and without its reasoning; None for plain text."""
        return self.turns[-1].answer if self.turns[-1].role == "assistant" else None


@dataclass(frozen=True, eq=False)
class Records(Sequence[Record]):
    """Records on disk, or a choice of them in their order; what splits are drawn by is in memory."""

    stored: Stored[Record]
    all_splits: np.ndarray
    """The split that each stored record names, or None."""
    all_groups: np.ndarray
    """A key of the group of each stored record: equal for equal groups."""
    have_images: bool
    """Whether any stored record shows an image."""
    positions: np.ndarray
    """[N] of these records among the stored ones."""

    @classmethod
    def of(cls, records: Iterable[Record]) -> Records:
        """The records, written to disk one by one."""
        import numpy as np

        splits: list[str | None] = []
        groups = bytearray()
        have_images = False

        def noted() -> Iterator[Record]:
            nonlocal have_images
            for record in records:
                have_images = have_images or bool(images_of(record.turns))
                splits.append(record.split)
                groups.extend(key_of(record.group))
                yield record

        stored = Stored(noted())
        return cls(stored, np.array(splits, object), keys_in(groups), have_images, np.arange(len(stored)))

    def where(self, chosen: np.ndarray) -> Records:
        """Those that are chosen, by [N] bool or by position."""
        return replace(self, positions=self.positions[chosen])

    @property
    def splits(self) -> np.ndarray:
        """[N] the split that each names, or None."""
        return self.all_splits[self.positions]

    @property
    def groups(self) -> np.ndarray:
        """[N] a key of the group of each: equal for equal groups."""
        return self.all_groups[self.positions]

    def of_split(self, *names: str | None) -> Records:
        """Those that name one of these splits."""
        import numpy as np

        return self.where(np.fromiter((split in names for split in self.splits), bool, len(self)))

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> list[Record]: ...
    def __getitem__(self, place: Any) -> Any:
        """One record, or a list of those of a slice."""
        found = self.positions[place]
        return [self.stored[int(each)] for each in found] if isinstance(place, slice) else self.stored[int(found)]

    def __iter__(self) -> Iterator[Record]:
        return (self.stored[int(each)] for each in self.positions)


def detect_format(rows: Sequence[Placed], formats: Sequence[str]) -> str:
    """The first of the formats whose columns every row has; DataError with the columns found when there is none."""
    common = set(rows[0][1])
    for _, fields in rows:
        common.intersection_update(fields)
    found = _format_of(common, formats)
    if found is not None:
        return found
    first = _format_of(rows[0][1], formats)
    if first is not None:
        lacking = [
            f"{place}: has {listed(fields) or 'no columns'}"
            for place, fields in rows
            if not _has_columns(fields, first)
        ]
        raise unusable(f"the first row is {first} ({_needed(first)}), {len(lacking)} others lack columns", lacking)
    raise DataError(
        f"columns {listed(sorted(rows[0][1]))} (first row, {rows[0][0]}) fit no format; needed are "
        f"{'; '.join(f'{name}: {_needed(name)}' for name in formats)}. "
        f"Name yours with data.train.columns, such as {_renaming(formats[-1])}."
    )


def _renaming(row_format: str) -> str:
    """How the columns of a format are named in a configuration."""
    return "{" + ", ".join(f"{name}: your_{name}" for name in NEEDED_COLUMNS[row_format][0]) + "}"


def _format_of(columns: Collection[str], formats: Sequence[str]) -> str | None:
    return next((name for name in formats if _has_columns(columns, name)), None)


def _has_columns(columns: Collection[str], row_format: str) -> bool:
    return any(all(name in columns for name in needed) for needed in NEEDED_COLUMNS[row_format])


def _needed(row_format: str) -> str:
    return " + ".join(NEEDED_COLUMNS[row_format][0])


def rename_columns(rows: Sequence[Placed], columns: dict[str, str]) -> Sequence[Placed]:
    """Rows with the user's columns under the needed names.

    DataError names the columns that no row has, and those that would be overwritten.
    """
    found = {name for _, fields in rows for name in fields}
    missing = [f"{theirs} (for {ours})" for ours, theirs in columns.items() if theirs not in found]
    if missing:
        raise DataError(
            f"data.train.columns names columns that no row has: {listed(missing)}; found: {listed(sorted(found))}"
        )
    hidden = [name for name in columns if name in found - set(columns.values())]
    if hidden:
        raise DataError(
            f"data.train.columns would hide the column {listed(hidden)} that the rows have themselves; give it another "
            f"name there too, such as {{old_{hidden[0]}: {hidden[0]}}}"
        )
    return Each(rows, lambda row: (row[0], _renamed(row[1], columns)))


def _renamed(fields: Fields, columns: dict[str, str]) -> Fields:
    taken = set(columns.values())
    own = {name: value for name, value in fields.items() if name not in taken}
    return own | {ours: fields[theirs] for ours, theirs in columns.items() if theirs in fields}


def turns_of(fields: Fields, row_format: str) -> tuple[Turn, ...]:
    """The turns of a row of this format; RowFault says why it has none."""
    return _READ_TURNS[row_format](fields)


def prompt_of(fields: Fields, images: Path | None = None) -> tuple[Turn, ...]:
    """The turns that a row asks with; its answer, where it has one, is left out. RowFault says why there are none.

    `images` is the folder below which those lie that the row names; without it, it may show none.
    """
    if images is None:
        return _without_image(fields, _asked(fields))
    row, names = with_marks(fields)
    return showing(_asked(row), placed(names, images)) if names else _asked(row)


def _asked(fields: Fields) -> tuple[Turn, ...]:
    column = next((name for name in (MESSAGES, SHAREGPT) if isinstance(fields.get(name), list)), None)
    if column is not None:
        messages = fields[column]
        asks = not messages or not isinstance(messages[-1], dict) or role_of(messages[-1]) != "assistant"
        beside = {name: fields[name] for name in columns_beside(column) if name in fields}
        return turns_of_messages({**beside, column: [*messages, _SOME_ANSWER] if asks else messages})[:-1]
    if "instruction" in fields:
        return _alpaca({**fields, "output": _SOME_ANSWER["content"]})[:-1]
    return (Turn("user", text_of(fields, "prompt")),)


def used_columns(row_format: str) -> set[str]:
    """Columns that carry what the task reads, the id or the split; the others are metadata."""
    return {name for columns in READ_COLUMNS[row_format] for name in columns} | {"split", *ID_COLUMNS}


def records_of(rows: Sequence[Placed], row_format: str, ids: Iterable[str], group_column: str | None = None) -> Records:
    """Records of the rows, grouped by a column or else by prompt; DataError lists the rows that cannot be used."""
    return Records.of(each_record(zip(ids, rows, strict=True), row_format, group_column))


def each_record(
    rows: Iterable[tuple[str, Placed]], row_format: str, group_column: str | None = None
) -> Iterator[Record]:
    """The record of each (id, row), grouped by a column or else by prompt; ends with the DataError of unusable rows."""
    used, faults, count = used_columns(row_format), list[str](), 0
    for count, (example_id, (place, fields)) in enumerate(rows, start=1):  # noqa: B007
        try:
            turns, columns, asked = _content(fields, row_format)
        except RowFault as fault:
            faults.append(f"{place}: {fault}")
            continue
        group = fields[group_column] if group_column else _normalised(asked)
        read = used | _columns_beside(fields, row_format)
        metadata = {name: value for name, value in fields.items() if name not in read}
        yield Record(example_id, turns, group, fields.get("split"), metadata, place, columns=columns)
    if faults:
        raise unusable(f"{len(faults)} of {count} rows cannot be used", faults)


def _columns_beside(fields: Fields, row_format: str) -> set[str]:
    """Columns that this row's turns are read from besides those of its format."""
    if row_format == "messages":
        return columns_beside(conversation_column(fields))
    return {TOOLS} if row_format in READ_PREFERENCES else set()


def _content(fields: Fields, row_format: str) -> tuple[tuple[Turn, ...], dict[str, Any], str]:
    """(turns, other columns, everything but the answers) of a row; RowFault says why it has none."""
    if row_format in READ_LABELLED:
        columns, asked = READ_LABELLED[row_format](fields)
        return (), columns, asked
    beside: dict[str, Any] = {}
    if row_format in READ_PREFERENCES:
        answered, beside = READ_PREFERENCES[row_format](fields)
        turns = turns_of_messages({**answered, TOOLS: fields.get(TOOLS)})
    else:
        turns = _READ_TURNS[row_format](fields)
    turns = _without_image(fields, turns)
    return turns, beside, " ".join(turn.content for turn in turns if turn.role not in ("assistant", TOOLS))


def _without_image(fields: Fields, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns; RowFault where they show an image, which would be lost."""
    if fields.get(IMAGE) and any(IMAGE_MARK in turn.content for turn in turns):
        raise RowFault(f"shows an image ({IMAGE_MARK}); such rows train with data.train.name: image_text")
    return turns


def _normalised(asked: str) -> str:
    """Rows that ask the same words belong to one group."""
    return " ".join(asked.lower().split())


def _prompt_completion(fields: Fields) -> tuple[Turn, ...]:
    return Turn("user", text_of(fields, "prompt")), Turn("assistant", text_of(fields, "completion"))


def _alpaca(fields: Fields) -> tuple[Turn, ...]:
    has_input = fields.get("input") is not None
    context = text_of(fields, "input", may_be_empty=True) if has_input else ""
    asked = request(text_of(fields, "instruction"), context)
    return Turn("user", asked), Turn("assistant", text_of(fields, "output"))


_SOME_ANSWER = {"role": "assistant", "content": "…"}
"""Stands for the answer where a row only asks, so that rows that ask and rows that answer are read alike."""

_MARKS = re.compile(r"^(User|Assistant|System):[ \t]*", re.MULTILINE)


def is_one_side(record: Record) -> bool:
    """Whether a row of plain text begins with the mark of one side, as the lines of a conversation do."""
    return record.turns[0].role == "text" and _MARKS.match(record.turns[0].content) is not None


def _plain_text(fields: Fields) -> tuple[Turn, ...]:
    text = text_of(fields, "text")
    parts = _MARKS.split(text)
    if len(parts) < 5 or parts[0].strip():  # fewer than two marks, or words before the first: plain text
        return (Turn("text", text),)
    turns = [
        {"role": role.lower(), "content": content.strip()}
        for role, content in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return turns_of_messages({MESSAGES: turns})


NEEDED_COLUMNS: dict[str, list[tuple[str, ...]]] = {
    "messages": [(MESSAGES,), (SHAREGPT,)],
    "alpaca": [("instruction", "output")],
    "prompt_completion": [("prompt", "completion")],
    "text": [("text",)],
    **{name: [columns] for name, columns in LABELLED_COLUMNS.items()},
    **PREFERENCE_COLUMNS,
}

READ_COLUMNS: dict[str, list[tuple[str, ...]]] = {
    **NEEDED_COLUMNS,
    "alpaca": [("instruction", "input", "output")],
    **{name: [columns] for name, columns in PREFERENCES_READ.items()},
}
"""Columns a format takes its turns from, optional ones included."""

TURN_FORMATS = ("messages", "alpaca", "prompt_completion", "text")
"""Formats whose rows are turns, in the order in which they are tried."""

_READ_TURNS: dict[str, Callable[[Fields], tuple[Turn, ...]]] = {
    "messages": turns_of_messages,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "text": _plain_text,
}
