"""Known datasets' files: found in a folder, or fetched once into a cache and checked."""

from __future__ import annotations

import http.client
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ghosttune.data.files import READABLE, Placed, fingerprint, read_file
from ghosttune.errors import DataError, listed

TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class KnownFile:
    """One file of a dataset, where it is published and how a copy is recognised."""

    name: str
    url: str
    """Where the file is published; where a person has to fetch it (`by_hand`), what to fetch."""
    rows: int = 0
    sha256: str | None = None
    """Of the published bytes; without one a fetched copy is recognised by its number of rows."""
    archive: KnownFile | None = None
    """The zip or tar file that holds it, under the name `member`; its `url` is then the archive's."""
    member: str = ""
    by_hand: bool = False
    """Whether a person has to fetch it."""
    read: Callable[[Path], Sequence[Placed]] = read_file
    """How its rows are read."""
    beside: tuple[KnownFile, ...] = ()
    """Files that must lie beside it, because `read` looks into them."""


def located(dataset: str, files: dict[str, KnownFile], revision: str, path: str | None) -> dict[str, Path]:
    """Split -> file, in the given folder or the cache; DataError lists all expected files when one is missing."""
    needed = [each for file in files.values() for each in (*file.beside, file)]
    folder = cache_folder() / dataset / revision[:12] if path is None else Path(path)
    if path is None:
        _refuse_to_fetch(dataset, [file for file in needed if file.by_hand], folder)
        found = {file.name: _fetched(dataset, file, folder) for file in needed}
    else:
        found = _all_stored(dataset, needed, folder)
    return {split: found[file.name] for split, file in files.items()}


def _all_stored(dataset: str, needed: list[KnownFile], folder: Path) -> dict[str, Path]:
    expected = listed(file.name for file in needed)
    if not folder.is_dir():
        raise DataError(f"data.train.path {folder} is not a folder; {dataset} needs {expected} in it")
    found = {file.name: stored(folder, file.name) for file in needed}
    missing = [name for name, copy in found.items() if copy is None]
    if missing:
        raise DataError(f"{folder} lacks {listed(missing)}; {dataset} needs {expected} (each may be .gz)")
    return {name: copy for name, copy in found.items() if copy is not None}


def cache_folder() -> Path:
    """Where fetched files are kept: $GHOSTTUNE_CACHE, else the user's cache folder."""
    base = (
        os.environ.get("GHOSTTUNE_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ghosttune"
    )
    return Path(base)


def _refuse_to_fetch(dataset: str, files: list[KnownFile], folder: Path) -> None:
    """DataError when files that only a person can fetch are not in the cache."""
    missing = [file for file in files if not (folder / file.name).is_file()]
    if missing:
        raise DataError(
            f"{dataset}: {listed(file.name for file in missing)} must be fetched by hand: {missing[0].url}. "
            f"Put them into {folder}, or give data.train.path the folder that holds them."
        )


def stored(folder: Path, name: str) -> Path | None:
    """The file under its published name, or under that name with the ending of another kind that can be read."""
    stem = name.rpartition(".")[0]
    endings = [name, *(f"{stem}.{kind}" for kind in READABLE)]
    names = [each for ending in endings for each in (ending, f"{ending}.gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _fetched(dataset: str, file: KnownFile, folder: Path) -> Path:
    """The checked copy of the file in the cache, fetched when there is none."""
    target = folder / file.name
    if not target.is_file():
        _fetch(dataset, file, target)
    elif fault := _fault(file, target):
        raise DataError(
            f"{target} was changed since it was fetched: it has {fault}; delete it to have it fetched again"
        )
    return target


def _fetch(dataset: str, file: KnownFile, target: Path) -> None:
    """Puts a checked copy of the published file at the target; a wrong copy never gets that name."""
    archive = _fetched(dataset, file.archive, target.parent) if file.archive else None
    url = (file.archive or file).url
    partial: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".fetching-", suffix=f"-{file.name}")
        partial = Path(temporary)
        with os.fdopen(handle, "wb") as copy:
            if archive is None:
                _download(file.url, copy)
            else:
                unpack(archive, file.member, copy)
        if fault := _fault(file, partial):
            raise DataError(f"{dataset}: {url} gave {fault}; nothing was kept")
        os.replace(partial, target)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise DataError(
            f"{dataset}: {url} cannot be fetched into {target.parent} ({getattr(error, 'reason', None) or error}). "
            f"Without a network, put {file.name} there, or give data.train.path the folder that holds the dataset's "
            "files; another cache folder is chosen with GHOSTTUNE_CACHE."
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _download(url: str, copy: BinaryIO) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
        shutil.copyfileobj(answer, copy)


def unpack(archive: Path, member: str, copy: BinaryIO) -> None:
    """Writes one member of a zip or tar file; no other is touched, so that no path inside the archive matters.

    DataError when the archive is damaged or has no such member.
    """
    import lzma
    import tarfile
    import zipfile
    import zlib

    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed, packed.open(member) as content:
                shutil.copyfileobj(content, copy)
            return
        with tarfile.open(archive) as packed:
            content = packed.extractfile(member)
            if content is None:
                raise DataError(f"{archive}: {member} is not a file")
            shutil.copyfileobj(content, copy)
    except (KeyError, zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{archive}: {member} cannot be unpacked ({error}); delete the archive") from error


def _fault(file: KnownFile, copy: Path) -> str:
    """What the copy has that the published file has not; empty when it is that file."""
    if file.sha256 is not None:
        found = fingerprint(copy)
        return "" if found == file.sha256 else f"bytes with sha256 {found}, expected {file.sha256}"
    try:
        rows = len(file.read(copy))
    except DataError as error:
        return f"something unreadable, expected {file.rows} rows ({str(error).splitlines()[-1].strip()})"
    return "" if rows == file.rows else f"{rows} rows, expected {file.rows}"
