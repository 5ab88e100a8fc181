"""Files, their lines and JSON that somebody else wrote: opened without waiting, and read within bounds."""

from __future__ import annotations

import errno
import gzip
import io
import json
import math
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ghosttune.errors import DataError, listed_faults

UNREADABLE = (OSError, EOFError, zlib.error)
"""What files and gzip archives raise that cannot be read to their end."""

DEEPEST = 100
"""Lists and objects inside each other: what walks through a row, here or in a library, calls itself once for each."""

LONGEST_NUMBER = 4300
"""Digits of a whole number: Python itself reads no more, because the time grows with their square."""


def open_file(path: str | Path) -> BinaryIO:
    """The bytes of an ordinary file; OSError for everything else, at which reading could wait or go on for ever."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe nobody writes to would wait here
    kind = os.fstat(handle).st_mode
    if stat.S_ISREG(kind):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is a pipe or a device; copy what it gives into a file", str(path))


def read_text(path: str | Path, most: int) -> str:
    """The text of an ordinary file of at most `most` bytes; OSError or UnicodeDecodeError where it cannot be had."""
    with open_file(path) as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return found.decode("utf-8-sig")


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text file, gzip or not, without their ends; DataError lists those that are not UTF-8."""
    try:
        with _opened(path) as file:
            for line in file:
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        title = f"{path} is not UTF-8; save it as UTF-8. These lines are not"
        raise DataError(listed_faults(title, _undecodable(path))) from error
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[io.TextIOBase]:
    with opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        yield text


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of an ordinary file, unpacked where its name ends in .gz."""
    with open_file(path) as file:
        if path.suffix.lower() != ".gz":
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield unpacked  # type: ignore[misc]  # it has what is used of a BinaryIO


def _undecodable(path: Path) -> list[str]:
    """Every line that is not UTF-8, looked for line by line because text is decoded in blocks of many lines."""
    faults: list[str] = []
    with opened(path) as file:
        for number, line in enumerate(_until_damaged(file, path.name, faults), start=1):
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                return [f"{path.name}:1: the file begins like UTF-16"]
            try:
                line.decode()
            except UnicodeDecodeError as error:
                faults.append(f"{path.name}:{number}: byte 0x{line[error.start]:02x} at byte {error.start + 1}")
    return faults


def _until_damaged(file: BinaryIO, name: str, faults: list[str]) -> Iterator[bytes]:
    """The lines up to where an archive cannot be unpacked, which is a fault too."""
    number = 0
    try:
        for number, line in enumerate(file, start=1):  # noqa: B007
            yield line
    except UNREADABLE as error:
        faults.append(f"{name}:{number + 1}: the archive is damaged here ({error})")


def read_json(text: str, unique: bool = True) -> Any:
    """What a JSON text holds. ValueError says what it is not; JSONDecodeError, where a place can be named.

    `unique` refuses an object in which a key stands twice, of which most programs would silently use the last.
    """
    try:
        value = json.loads(
            text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_object if unique else None
        )
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except ValueError as error:
        if str(error).startswith("Exceeds the limit"):
            raise ValueError(f"a whole number of more than {LONGEST_NUMBER:,} digits") from None
        raise
    if text.count("[") + text.count("{") > DEEPEST and _is_deeper(value):
        raise ValueError(_TOO_DEEP)
    return value


_TOO_DEEP = f"nested too deeply: at most {DEEPEST} lists and objects inside each other"


def _no_number(name: str) -> Any:
    raise ValueError(f"{name if len(name) <= 20 else name[:19] + '…'} is no number; null stands for what is not known")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in (other for other, _ in pairs[:place]))
        raise ValueError(f"{json.dumps(twice)} stands twice in one object")
    return found


def _is_deeper(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        outer = [each for each in level if isinstance(each, list | dict)]
        level = [inner for each in outer for inner in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return False
    return any(isinstance(each, list | dict) for each in level)
