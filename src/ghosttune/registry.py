"""Named things a user can choose, and where they are found.

To add a method, dataset or task, one writes one file in its folder and registers one function there. Another package
does the same and lists its module under the entry point group of the registry (`ghosttune.methods`, …).
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from ghosttune.errors import GhosttuneError, InputError, listed, nearest
from ghosttune.own_code import is_own_code

Build = TypeVar("Build", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """One registered thing."""

    name: str
    settings: Any
    """What describes it: a settings class (methods, tasks) or a description (datasets)."""
    build: Callable[..., Any]
    meaning: str
    """First line of the function's docstring."""


class Registry:
    """Name -> Entry for one kind of thing; its own modules are imported when it is first asked.

    Args:
        own: the module whose `entry` makes one of a user's function, `path.py:function`; unset where none can be.
    """

    def __init__(self, kind: str, home: str, own: str | None = None):
        self.kind = kind
        self.home = home
        self.own = own
        self._entries: dict[str, Entry] = {}
        self._loading = self._loaded = False
        self._lock = threading.RLock()

    def register(self, name: str, settings: Any = None) -> Callable[[Build], Build]:
        """Decorator that enters a function under `name`; a name already taken is an error."""

        def enter(build: Build) -> Build:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            meaning = (build.__doc__ or "").strip().splitlines()
            self._entries[name] = Entry(name, settings, build, meaning[0] if meaning else "")
            return build

        return enter

    def __getitem__(self, name: str) -> Entry:
        """The entry; InputError with the known names when there is none."""
        if self.own is not None and is_own_code(name):
            return importlib.import_module(self.own).entry(name)
        self._load()
        if name not in self._entries:
            raise InputError(
                f"no {self.kind} is called {name!r}{nearest(name, self._entries)} (known: {listed(self.names(), 40)})"
            )
        return self._entries[name]

    def __iter__(self) -> Iterator[Entry]:
        self._load()
        return iter([self._entries[name] for name in sorted(self._entries)])

    def names(self) -> list[str]:
        return [entry.name for entry in self]

    def _load(self) -> None:
        if self._loaded:
            return
        with self._lock:  # another thread would see the entries of some modules only
            if self._loading:  # by the imports, which may ask this registry themselves
                return
            self._loading = True
            try:
                package = importlib.import_module(self.home)
                for module in pkgutil.iter_modules(package.__path__):
                    importlib.import_module(f"{self.home}.{module.name}")
                for point in entry_points(group=self.home):
                    self._load_foreign(point)
            finally:
                self._loaded = True

    def _load_foreign(self, point: EntryPoint) -> None:
        """Imports another package's module; GhosttuneError that names it when it cannot be imported."""
        try:
            point.load()
        except Exception as error:
            message = f"{point.value}, which another package adds to {self.home}, cannot be loaded: {error}"
            raise GhosttuneError(f"{message}; mend or uninstall that package") from error


METHODS = Registry("method", "ghosttune.methods")
DATASETS = Registry("dataset", "ghosttune.data.known")
TASKS = Registry("task", "ghosttune.tasks")
STRATEGIES = Registry("strategy", "ghosttune.schedules")
METRICS = Registry("metric", "ghosttune.metrics", own="ghosttune.metrics.own")
FIGURES = Registry("figure", "ghosttune.reports")
