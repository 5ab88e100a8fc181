"""Functions of a user's own Python file, named `path.py:function`, and the consent without which none is run.

A file never consents: a configuration that names code may come from anybody. Whoever gives the command does, with
`--allow-code`, or `ghosttune.allow_code()` in Python; it holds for the process.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ghosttune.errors import InputError, listed, nearest

_NAMED = re.compile(r".+\.py:[A-Za-z_]\w*", re.DOTALL)

_allowed = False


def allow_code() -> None:
    """Functions of own files may run in this process from now on."""
    global _allowed
    _allowed = True


def consent() -> list[str]:
    """What gives another process the consent that this one has."""
    return ["--allow-code"] if _allowed else []


def is_own_code(name: str) -> bool:
    """Whether a name is written `path.py:function`."""
    return _NAMED.fullmatch(name) is not None


def at(name: str, place: Callable[[str], str]) -> str:
    """The name with its file where `place` says."""
    path, function = _parts(name)
    return f"{place(path)}:{function}"


def short_name(name: str) -> str:
    """The name as a line or a figure has it: without the file's folder."""
    return Path(name).name if is_own_code(name) else name


def own_function(name: str) -> Callable[..., Any]:
    """The function that is named, from its file; InputError where nobody has consented, and where it cannot be had."""
    path, function = _parts(name)
    if not _allowed:
        raise InputError(
            f"{name} is code that would run on this machine: read {path}, then give --allow-code "
            "(in Python ghosttune.allow_code())"
        )
    found = vars(_module(path))
    there = [key for key, value in found.items() if callable(value) and not key.startswith("_")]
    if not callable(found.get(function)):
        raise InputError(f"{path} has no function {function!r}{nearest(function, there)}; it has {listed(there)}")
    return found[function]


def digest(name: str) -> str:
    """SHA-256 of the file that holds the function, as it was when this was first asked: beside its import."""
    return _digest(_parts(name)[0])


def fault_in(name: str, error: BaseException) -> str:
    """What an error was, and the last line of the function's own file that led to it."""
    path, _ = _parts(name)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else (lines or [None])[-1]
    return f"{type(error).__name__}: {error}" + (f" ({path}:{line})" if line else "")


def _parts(name: str) -> tuple[str, str]:
    """(path, function)."""
    path, _, function = name.rpartition(":")
    return path, function


@lru_cache
def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@lru_cache
def _module(path: str) -> ModuleType:
    if not Path(path).is_file():
        raise InputError(f"{path} is not there, or is no file")
    spec = importlib.util.spec_from_file_location(f"ghosttune_own_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path} cannot be imported: {fault_in(f'{path}:', error)}") from error
    return module
