"""Rows that lie on disk and are read one by one, so that the memory of a run does not grow with its data."""

from __future__ import annotations

import hashlib
import mmap
import pickle
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ghosttune.errors import DataError
from ghosttune.run.directory import FULL

if TYPE_CHECKING:
    import numpy as np

Item = TypeVar("Item", covariant=True)

KEY_BYTES = 16
"""Of a digest that stands for a text: two of a billion texts are taken for one with a probability of 1e-21."""


class Stored(Sequence[Item]):
    """Items as they were given, in a mapped temporary file; each is made anew when it is asked for.

    The file has no name: it belongs to this process, and is gone with it however that ends. Eight bytes per item stay
    in memory. DataError when the disk has no room.
    """

    def __init__(self, items: Iterable[Item]):
        self._ends = array("q", [0])
        try:
            with tempfile.TemporaryFile() as file:
                for item in items:
                    self._ends.append(self._ends[-1] + file.write(pickle.dumps(item, pickle.HIGHEST_PROTOCOL)))
                file.flush()
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self._ends[-1] else b""
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise DataError(
                f"the rows do not fit into the folder for temporary files, {tempfile.gettempdir()}: {error.strerror}; "
                "rows and tokens take about six times the size of their files there. Make room, or name a folder on a "
                "larger disk with the environment variable TMPDIR"
            ) from error
        self._bytes = memoryview(mapped)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...
    def __getitem__(self, place: Any) -> Any:
        """One item, or a list of those of a slice."""
        position = range(len(self))[place]
        return self._read(position) if isinstance(position, int) else [self._read(each) for each in position]

    def __iter__(self) -> Iterator[Item]:
        return map(self._read, range(len(self)))

    def _read(self, position: int) -> Item:
        return pickle.loads(self._bytes[self._ends[position] : self._ends[position + 1]])


class Each(Sequence[Item]):
    """What `make` makes of each item of a sequence, when it is asked for."""

    def __init__(self, items: Sequence[Any], make: Callable[[Any], Item]):
        self._items, self._make = items, make

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Item]: ...
    def __getitem__(self, place: Any) -> Any:
        """One item, or those of a slice, unmade."""
        return Each(self._items[place], self._make) if isinstance(place, slice) else self._make(self._items[place])

    def __iter__(self) -> Iterator[Item]:
        return map(self._make, self._items)


def key_of(text: str) -> bytes:
    """A digest that stands for the text, much shorter than it: equal for equal texts."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=KEY_BYTES).digest()


def keys_of(texts: Iterable[str]) -> np.ndarray:
    """The digests of all texts, to be compared with each other."""
    keys = bytearray()
    for text in texts:
        keys += key_of(text)
    return keys_in(keys)


def keys_in(digests: bytearray) -> np.ndarray:
    """Digests that were joined, one by one again."""
    import numpy as np

    return np.frombuffer(digests, f"S{KEY_BYTES}")
