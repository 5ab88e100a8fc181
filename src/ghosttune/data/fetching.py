"""Known datasets' files: found in a folder, or fetched once into a cache and checked."""

from __future__ import annotations

import http.client
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ghosttune.data.files import Placed, fingerprint, read_file
from ghosttune.errors import DataError, listed

TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class KnownFile:
    """One file of a dataset, where it is published and how a copy is recognised."""

    name: str
    url: str
    rows: int
    sha256: str | None = None
    """Of the published bytes; without one a fetched copy is recognised by its number of rows."""


@dataclass(frozen=True)
class KnownDataset:
    """What `ghosttune show datasets` prints, and where the files are."""

    title: str
    revision: str
    licence: str
    files: dict[str, KnownFile]
    columns: tuple[str, ...]
    group: str
    anchor: str
    metrics: tuple[str, ...] = ()
    """What `evaluate.metrics: auto` takes."""

    def locate(self, name: str, path: str | None) -> dict[str, Path]:
        """Split -> file, in the given folder or the cache; DataError lists all expected files when one is missing."""
        if path is None:
            folder = cache_folder() / name / self.revision[:12]
            return {split: _fetched(name, file, folder) for split, file in self.files.items()}
        folder = Path(path)
        if not folder.is_dir():
            raise DataError(f"data.train.path {folder} is not a folder; {name} needs {self._expected()} in it")
        found = {split: _stored(folder, file.name) for split, file in self.files.items()}
        missing = [self.files[split].name for split, file in found.items() if file is None]
        if missing:
            raise DataError(f"{folder} lacks {listed(missing)}; {name} needs {self._expected()} (each may be .gz)")
        return {split: file for split, file in found.items() if file is not None}

    def require_columns(self, file: Path, rows: list[Placed]) -> None:
        """DataError when the file's header is not the published one."""
        lacking = [column for column in self.columns if column not in rows[0][1]]
        if lacking:
            raise DataError(f"{file} lacks the columns {listed(lacking)}; it has {listed(rows[0][1])}")

    def _expected(self) -> str:
        return listed(file.name for file in self.files.values())


def cache_folder() -> Path:
    """Where fetched files are kept: $GHOSTTUNE_CACHE, else the user's cache folder."""
    base = (
        os.environ.get("GHOSTTUNE_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ghosttune"
    )
    return Path(base)


def _stored(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _fetched(name: str, file: KnownFile, folder: Path) -> Path:
    """The checked copy of the file in the cache, fetched when there is none."""
    target = folder / file.name
    if not target.is_file():
        _fetch(name, file, target)
    elif fault := _fault(file, target):
        raise DataError(
            f"{target} was changed since it was fetched: it has {fault}; delete it to have it fetched again"
        )
    return target


def _fetch(name: str, file: KnownFile, target: Path) -> None:
    """Puts a checked copy of the published file at the target; a wrong copy never gets that name."""
    partial: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".fetching-", suffix=f"-{file.name}")
        partial = Path(temporary)
        with os.fdopen(handle, "wb") as copy, urllib.request.urlopen(file.url, timeout=TIMEOUT_SECONDS) as answer:
            shutil.copyfileobj(answer, copy)
        if fault := _fault(file, partial):
            raise DataError(f"{name}: {file.url} gave {fault}; nothing was kept")
        os.replace(partial, target)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise DataError(
            f"{name}: {file.url} cannot be fetched into {target.parent} ({getattr(error, 'reason', None) or error}). "
            f"Without a network, put {file.name} there, or give data.train.path the folder that holds the dataset's "
            "files; another cache folder is chosen with GHOSTTUNE_CACHE."
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _fault(file: KnownFile, copy: Path) -> str:
    """What the copy has that the published file has not; empty when it is that file."""
    if file.sha256 is not None:
        found = fingerprint(copy)
        return "" if found == file.sha256 else f"bytes with sha256 {found}, expected {file.sha256}"
    try:
        rows = len(read_file(copy))
    except DataError as error:
        return f"something unreadable, expected {file.rows} rows ({str(error).splitlines()[-1].strip()})"
    return "" if rows == file.rows else f"{rows} rows, expected {file.rows}"
