"""Known datasets' files: found in a folder, or fetched once into a cache and checked."""

from __future__ import annotations

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

    def locate(self, name: str, path: str | None) -> dict[str, Path]:
        """Split -> file, in the given folder or the cache; DataError lists all expected files when one is missing."""
        folder = Path(path) if path else cache_folder() / name / self.revision[:12]
        if path and not folder.is_dir():
            raise DataError(f"data.train.path {folder} is not a folder; {name} needs {self._expected()} in it")
        if path is None:
            for file in self.files.values():
                _fetch(name, file, folder)
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


def _fetch(name: str, file: KnownFile, folder: Path) -> None:
    """Puts a checked copy of the file into the folder, unless one is there; a wrong copy never gets its final name."""
    target = folder / file.name
    if target.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".fetching-", suffix=f"-{file.name}", delete=False) as copy:
        partial = Path(copy.name)
        try:
            with urllib.request.urlopen(file.url, timeout=TIMEOUT_SECONDS) as answer:
                shutil.copyfileobj(answer, copy)
            copy.close()
            _check(file, partial)
            os.replace(partial, target)
        except (urllib.error.URLError, OSError) as error:
            raise DataError(
                f"{name}: {file.url} cannot be fetched ({getattr(error, 'reason', error)}). Offline, put the file into {folder}, "
                f"or give data.train.path the folder that holds it."
            ) from error
        finally:
            partial.unlink(missing_ok=True)


def _check(file: KnownFile, copy: Path) -> None:
    if file.sha256 is not None and (found := fingerprint(copy)) != file.sha256:
        raise DataError(f"{file.url} gave bytes with sha256 {found}, expected {file.sha256}; nothing was kept")
    if file.sha256 is None and (rows := len(read_file(copy))) != file.rows:
        raise DataError(f"{file.url} gave {rows} rows, expected {file.rows}; nothing was kept")
