"""Folders for what a process keeps only while it lives; what killed processes left of them goes at the next start."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "ghosttune-"
LOCK = ".lock"
"""Locked for as long as the process lives; there only once it is locked."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder below TMPDIR, removed at the end; first removes those of this user's processes that are no more."""
    _remove_abandoned(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name, open(Path(name) / f"{LOCK}.new", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(lock.name, Path(name) / LOCK)
        yield Path(name)


def _remove_abandoned(place: Path) -> None:
    for lock in place.glob(f"{PREFIX}*/{LOCK}"):
        try:
            if lock.parent.lstat().st_uid != os.getuid() or lock.parent.is_symlink():
                continue
            with open(lock) as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent)
        except OSError:  # alive, or just removed by another process
            continue
