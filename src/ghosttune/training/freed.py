"""What the C library keeps of memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import Any

WORTH = 512 * 1024**2
"""Bytes that are worth giving back: the pages come anew, which a small model would feel at every guide pass."""


class _Counts(ctypes.Structure):
    """`struct mallinfo2`; `fordblks` are the bytes that are free and kept."""

    _fields_ = [(f"counted_{place}", ctypes.c_size_t) for place in range(8)]
    _fields_ += [("fordblks", ctypes.c_size_t), ("keepcost", ctypes.c_size_t)]


def give_back() -> None:
    """Gives back what malloc of the GNU C library keeps, if that is worth it; other libraries keep little.

    A pass in between, over guide rows or dev rows, has tensors of other sizes than a training step has. What malloc
    keeps of them does not fit those of the next step, which would come on top.
    """
    library = _library()
    if library is not None and library.mallinfo2().fordblks >= WORTH:
        library.malloc_trim(0)


@cache
def _library() -> Any:
    """The GNU C library; None where it is another, or older than 2.33."""
    library = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if library is None or not hasattr(library, "mallinfo2"):
        return None
    library.mallinfo2.restype = _Counts
    return library
