"""Rows of a dataset on the Hugging Face hub: fetched or cached by the `datasets` library, only when named."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghosttune.data.files import Fields, Placed, without_nan
from ghosttune.data.stored import Stored
from ghosttune.errors import DataError, listed

HUB_ID = re.compile(r"(?P<repository>[^/:@\s]+/[^/:@\s]+)(:(?P<configuration>[^/:@\s]+))?(@(?P<revision>[^:@\s]+))?")
"""`org/name`, `org/name:configuration`, `org/name@revision` or all of it."""


@dataclass(frozen=True)
class HubSplit:
    """The rows of one split."""

    rows: Sequence[Placed]
    fingerprint: str
    """sha256 of the rows as JSON lines."""


def is_hub_id(name: str) -> bool:
    """Whether a dataset's name is one of the hub; names of known datasets have no slash."""
    return "/" in name


@dataclass(frozen=True)
class HubStream:
    """The split train of a dataset, fetched while it is read."""

    name: str
    table: Any
    """The library's `IterableDataset`."""
    fingerprint: str
    """sha256 of the revision and of the names of its files; the rows themselves are not read for it."""

    @classmethod
    def of(cls, name: str) -> HubStream:
        """DataError as `hub_rows` raises it, or when there is no split train."""
        from datasets import load_dataset_builder

        builder = _loaded(name, load_dataset_builder)
        found = builder.as_streaming_dataset()
        if "train" not in found:
            raise DataError(f"{name} has no split train; it has {listed(map(str, found))}")
        files = list((builder.config.data_files or {}).get("train", []))
        digest = hashlib.sha256(json.dumps([builder.hash, *map(str, files)]).encode()).hexdigest()
        return cls(name, found["train"], digest)

    @property
    def dataset(self) -> str:
        """What its ids begin with."""
        return self.name.rpartition("/")[2]

    @property
    def shards(self) -> int:
        return self.table.num_shards

    def rows(self, shard: int, offset: int, position: int) -> Iterator[Placed]:
        """The rows of a shard behind the first `offset`, placed from `position` on; DataError where one has no JSON."""
        rows = _each(self.table.shard(self.shards, shard).skip(offset))
        try:
            for place, fields in enumerate(map(without_nan, rows), position):
                yield f"{self.name} train[{place}]", fields
        except (ValueError, OverflowError) as error:
            raise DataError(f"{self.name} train cannot be read: {error}") from error


def hub_rows(name: str) -> dict[str, HubSplit]:
    """Split -> rows; DataError when the id is malformed, or the dataset neither cached nor to be had."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    return {str(split): _split(name, str(split), _each(rows)) for split, rows in _loaded(name, load_dataset).items()}


def _loaded(name: str, load: Callable[..., Any]) -> Any:
    """What a function of the library makes of the id."""
    from huggingface_hub.errors import HfHubHTTPError

    found = HUB_ID.fullmatch(name)
    if found is None:
        raise DataError(f"data.train.name {name!r} is not a hub id: org/name, org/name:configuration, with @revision")
    if Path(found["repository"]).exists():  # the library would take it, and say nothing
        raise DataError(
            f"{found['repository']} is a hub id and also lies here; give data.train.path for what lies here"
        )
    try:
        return load(found["repository"], found["configuration"], revision=found["revision"])
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{name} cannot be had from the hub: {reason}. Fetch it once where there is a network (it is then kept "
            "below HF_HOME), name its configuration as org/name:configuration where it has several, or give "
            "data.train.path a file of its rows."
        ) from error


def _each(rows: Any) -> Iterator[Fields]:
    """The rows of a table of the library, a thousand at a time."""
    for part in rows.with_format("arrow").iter(1000):
        yield from part.to_pylist()


def _split(name: str, split: str, rows: Iterable[Fields]) -> HubSplit:
    digest = hashlib.sha256()

    def placed() -> Iterator[Placed]:
        for place, fields in enumerate(map(without_nan, rows)):
            digest.update(json.dumps(fields, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
            yield f"{name} {split}[{place}]", fields

    try:
        stored = Stored(placed())
    except (ValueError, OverflowError) as error:  # infinite numbers, and dates that Python does not have
        raise DataError(f"{name} {split} cannot be read: {error}") from error
    return HubSplit(stored, digest.hexdigest())
