"""Which rows of a run are forgotten, and which others are held on to meanwhile."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from ghosttune.config.sections.forget import ForgetSettings
from ghosttune.data.records import Records
from ghosttune.data.selecting import ids_in
from ghosttune.data.splitting import draw
from ghosttune.errors import DataError, listed

RETAINED = 4
"""Rows that are held on to for each that is forgotten, where nobody said how many."""


def forgotten_ids(settings: ForgetSettings) -> set[str]:
    """The ids in `forget.rows`; DataError when they cannot be read."""
    return ids_in(Path(str(settings.rows)), "forget.rows")


def forgotten_and_retained(settings: ForgetSettings, rows: Records, seed: int) -> Records:
    """Of the rows that could train, those that are forgotten or held on to, in their own order.

    DataError for ids that are not of these rows, for none, for all of them, and for rows that are to be both.
    """
    ids = [record.example_id for record in rows]
    forgotten = _of_these(forgotten_ids(settings), ids, "forget.rows", str(settings.rows))
    if len(forgotten) == len(ids):
        raise DataError(
            f"forget.rows {settings.rows} names all {len(ids)} rows: without them there is only the base; name fewer"
        )
    if settings.retain is not None:
        retained = _of_these(ids_in(Path(settings.retain), "forget.retain"), ids, "forget.retain", settings.retain)
        if both := sorted(forgotten & retained):
            raise DataError(f"forget.retain {settings.retain} names {len(both)} rows to forget: {listed(both, 5)}")
    else:
        wanted = RETAINED * len(forgotten) if settings.retain_rows is None else settings.retain_rows
        others = [own for own in ids if own not in forgotten]
        if settings.retain_rows is not None and wanted > len(others):
            raise DataError(f"forget.retain_rows asks for {wanted} rows, and there are {len(others)} others; lower it")
        retained = set(sorted(others, key=lambda own: draw(seed, "retain", own))[:wanted])
    chosen = forgotten | retained
    return rows.where(np.fromiter((own in chosen for own in ids), bool, len(ids)))


def _of_these(names: set[str], ids: Collection[str], setting: str, path: str) -> set[str]:
    if unknown := sorted(names.difference(ids)):
        raise DataError(
            f"{setting} {path} names {len(unknown)} rows that are not among the {len(ids)} rows that train: "
            f"{listed(unknown, 5)}; a run's splits.csv has the ids of all its rows"
        )
    return names
