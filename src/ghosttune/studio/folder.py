"""The folder that a studio shows: which runs lie in it, and where the studio keeps what is its own."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ghosttune.errors import InputError, RunError
from ghosttune.foreign import read_json
from ghosttune.run.directory import RunDir

OWN = "studio"
"""Folder of the studio's own files, beside the runs."""

DEEPEST = 4
"""Folders below the one that is shown in which runs are looked for, such as those of a sweep."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._-]{0,99}){0,3}")
"""What a new run may be called."""


class Unknown(InputError):
    """There is no run of this name in the folder."""


class Folder:
    """Run directories below one folder. Links are not followed: what is shown lies inside."""

    def __init__(self, path: str | Path):
        self.path = Path(path).resolve()
        if RunDir(self.path).exists:
            raise InputError(f"{path} is a run; give the folder that holds it: ghosttune studio {self.path.parent}")
        if not self.path.is_dir():
            raise InputError(f"{path} is no folder; give one that holds runs, or make it")
        self._writing = threading.Lock()

    def names(self) -> list[str]:
        """The runs, by their place below the folder."""
        return sorted(self._found(self.path, 0))

    def _found(self, folder: Path, depth: int) -> Iterator[str]:
        with os.scandir(folder) as entries:
            inside = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
        for path in inside:
            if (path / "run.json").is_file():
                yield path.relative_to(self.path).as_posix()
            elif depth < DEEPEST and not path.name.startswith("."):
                yield from self._found(path, depth + 1)

    def run(self, name: str) -> RunDir:
        """The run of this name; Unknown where none of `names` is called so, RunError where its files lead elsewhere."""
        if name not in self.names():
            raise Unknown(f"no run in {self.path} is called {name!r}")
        return RunDir(self.path / name).open()

    def new(self, name: str) -> Path:
        """Where a run of this name would lie; InputError for a name that is taken or leads elsewhere."""
        if not NAME.fullmatch(name) or name.split("/")[0] == OWN:
            raise InputError(
                f"a run cannot be called {name!r} here: letters, digits, dots, dashes and underscores, not {OWN}"
            )
        place = self.path / name
        if os.path.lexists(place):
            raise RunError(f"{place} exists; give the run another name")
        if not place.parent.resolve().is_relative_to(self.path):
            raise InputError(f"{name} would lie outside of {self.path}")
        return place

    def own(self, kind: str, name: str, suffix: str = "") -> Path:
        """A file of the studio's own that belongs to a run, such as what it was started with.

        Unknown for a name that leads elsewhere, or that no file can have.
        """
        home = self.path / OWN / kind
        try:
            place = home / f"{name}{suffix}"
            is_inside = place.resolve().is_relative_to(home) and ".." not in place.parts
            place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError):
            is_inside = False
        if not (name and is_inside):
            raise Unknown(f"no run in {self.path} is called {name[:100]!r}")
        return place

    @property
    def history(self) -> Path:
        return self.path / OWN / "history.jsonl"

    def note(self, what: str, **facts: Any) -> None:
        """Adds a line to the history of what was done."""
        import json

        self.history.parent.mkdir(parents=True, exist_ok=True)
        line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "what": what, **facts}
        with self._writing, open(self.history, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def past(self) -> list[dict[str, Any]]:
        """The history, oldest first; a line that a crash has cut off is left out."""
        lines = self.history.read_bytes().split(b"\n")[:-1] if self.history.is_file() else []
        found = []
        for line in lines:
            try:
                entry = read_json(line.decode())
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
        return found
