"""An append-only store of one row of numbers per example, on disk, that refuses rows of another meaning.

    manifest.json    what rows mean: the sketch's options, columns and checksum, and whatever the caller adds
    rows.bin         [n, size] numbers, little-endian, nothing else
    ids.txt          one example id per line, in the order of the rows
    seal.json        written when the store is complete: sha256 of the other files, and notes

A row counts once its id is there: rows are written before their ids, and what a killed process left half-written is
cut off when the store is opened to append. One process appends at a time; any number may read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor

FORMAT = 1
SEAL = "seal.json"
SEALED = ("manifest.json", "rows.bin", "ids.txt")
LARGEST = 1 << 44
"""Numbers in a row: more than the parameters of any model."""
LONGEST = 200
"""Characters that a message shows of a value."""
SHOWN = 5
"""Differences that a message names; the rest is counted."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class StoreError(ValueError):
    """The store on disk is not the one asked for, or a row cannot be added to it."""


class GradientStore:
    """Rows of gradients by example id. Open with `create`, `append_to` or `read`; close it, or use it in a `with`.

    Attributes:
        ids: of all rows, in order.
        size: numbers in a row.
        dtype: of the rows.
        manifest: what the rows mean.
        notes: what the seal says of the rows besides; empty before it is read.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], writable: bool):
        self.folder, self.manifest = folder, manifest
        self.size, self.dtype = int(manifest["size"]), DTYPES[manifest["dtype"]]
        self.bytes_per_row = self.size * self.dtype.itemsize
        self.ids = self._committed()
        self._places = {name: place for place, name in enumerate(self.ids)}
        self.notes: dict[str, Any] = {}
        self._rows_file = self._ids_file = None
        if writable:
            _cut(folder / "rows.bin", len(self.ids) * self.bytes_per_row)
            _cut(folder / "ids.txt", sum(len(name.encode()) + 1 for name in self.ids))
            self._rows_file, self._ids_file = (folder / "rows.bin").open("ab"), (folder / "ids.txt").open("ab")

    @classmethod
    def create(cls, folder: Path | str, *, size: int, dtype: torch.dtype, meaning: Mapping[str, Any]) -> GradientStore:
        """A new, empty store. Raises StoreError where `folder` already holds one."""
        folder = Path(folder)
        if (folder / "manifest.json").exists():
            raise StoreError(f"{folder} already holds a store; open it with append_to, or choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {
            "format": FORMAT,
            "size": size,
            "dtype": str(dtype).removeprefix("torch."),
            "meaning": dict(meaning),
        }
        if manifest["dtype"] not in DTYPES:
            raise StoreError(f"dtype is {dtype}; accepted are {', '.join(DTYPES)}")
        for name in ("rows.bin", "ids.txt"):
            (folder / name).write_bytes(b"")
        _replace(folder / "manifest.json", manifest)
        return cls(folder, manifest, writable=True)

    @classmethod
    def append_to(cls, folder: Path | str, *, meaning: Mapping[str, Any]) -> GradientStore:
        """The store in `folder`, to add rows to. Raises StoreError where its rows mean something else."""
        manifest = _manifest(Path(folder))
        _require(Path(folder), manifest["meaning"], meaning)
        return cls(Path(folder), manifest, writable=True)

    @classmethod
    def read(cls, folder: Path | str) -> GradientStore:
        """The store in `folder`, to read from."""
        return cls(Path(folder), _manifest(Path(folder)), writable=False)

    @classmethod
    def read_sealed(cls, folder: Path | str) -> GradientStore:
        """The complete store in `folder`, every byte verified: reads all of it once.

        Raises StoreError where it was not sealed, and naming the files that are not what was sealed.
        """
        folder = Path(folder)
        if not cls.is_sealed(folder):
            raise StoreError(f"{folder} is not complete: it holds {len(cls.read(folder))} rows so far")
        try:
            sealed = json.loads((folder / SEAL).read_bytes())
            changed = [name for name in SEALED if _digest(folder / name) != sealed["sha256"][name]]
            notes = dict(sealed["notes"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(f"{folder} is damaged: {type(error).__name__}: {error}") from error
        if changed:
            raise StoreError(f"{folder} is damaged: {', '.join(changed)} changed since it was sealed")
        store = cls.read(folder)
        rows = (folder / "rows.bin").stat().st_size
        if rows != len(store) * store.bytes_per_row:
            raise StoreError(
                f"{folder} is damaged: rows.bin has {rows:,} bytes, and {len(store):,} rows of {store.size:,} "
                f"{store.manifest['dtype']} numbers have {len(store) * store.bytes_per_row:,}"
            )
        store.notes = notes
        return store

    @staticmethod
    def is_sealed(folder: Path | str) -> bool:
        """Whether the store in `folder` was complete; `read_sealed` says whether it still is."""
        return (Path(folder) / SEAL).is_file()

    def seal(self, notes: Mapping[str, Any] | None = None) -> None:
        """Marks the store as complete, with what is worth knowing of its rows. Appending to it breaks the seal."""
        self.close()
        digests = {name: _digest(self.folder / name) for name in SEALED}
        _replace(self.folder / SEAL, {"sha256": digests, "notes": dict(notes or {})})

    def require(self, meaning: Mapping[str, Any]) -> None:
        """StoreError naming every difference unless the rows mean this; what `meaning` leaves out may be anything."""
        _require(self.folder, {name: self.manifest["meaning"].get(name) for name in meaning}, meaning)

    def append(self, ids: Sequence[str], rows: Tensor) -> None:
        """Adds one row per id; `rows` [n, size] on any device.

        Raises:
            StoreError: another number of rows or columns, an id twice or with a line break, numbers that are not
                finite in the store's dtype (float16 ends at 65,504) or vanish in it, or a store opened to read.
        """
        if self._rows_file is None or self._ids_file is None:
            raise StoreError(f"{self.folder} is not open for appending")
        if tuple(rows.shape) != (len(ids), self.size):
            raise StoreError(f"{len(ids)} ids came with rows {list(rows.shape)}; expected [{len(ids)}, {self.size}]")
        known = [name for name in ids if name in self._places]
        if known or len(set(ids)) < len(ids):
            raise StoreError(f"ids that are already stored or come twice: {known[:5] or list(ids)[:5]}")
        if any("\n" in name for name in ids):
            raise StoreError("an id holds a line break")
        host = rows.detach().to(self.dtype).cpu().contiguous()
        if not torch.isfinite(host).all():
            raise StoreError(f"rows hold numbers that are not finite in {self.manifest['dtype']}")
        if self.dtype == torch.float16 and not torch.equal(host.any(1), rows.detach().any(1).cpu()):
            raise StoreError("rows vanish in float16, whose smallest number is 6e-8; use bfloat16 or float32")
        (self.folder / SEAL).unlink(missing_ok=True)
        self._rows_file.write(host.view(torch.uint8).numpy().data)
        self._rows_file.flush()
        self._ids_file.write("".join(f"{name}\n" for name in ids).encode())
        self._ids_file.flush()
        for name in ids:
            self._places[name] = len(self.ids)
            self.ids.append(name)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def place(self, name: str) -> int:
        """Position of a row; KeyError for an unknown one."""
        return self._places[name]

    def rows(self, ids: Sequence[str]) -> Tensor:
        """[n, size] rows of the given ids. Raises StoreError for unknown ones."""
        unknown = [name for name in ids if name not in self._places]
        if unknown:
            raise StoreError(f"ids that are not in {self.folder}: {unknown[:5]}")
        found = torch.empty(len(ids), self.size, dtype=self.dtype)
        with (self.folder / "rows.bin").open("rb", buffering=0) as file:
            for place, name in enumerate(ids):
                file.seek(self._places[name] * self.bytes_per_row)
                file.readinto(memoryview(found[place].view(torch.uint8).numpy()))  # type: ignore[arg-type]
        return found

    def blocks(self, count: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """(index of the first row, [n <= count, size] rows) from row `start` until `stop`, or the last.

        Every block is read into the same memory and is valid until the next one: read straight into a buffer that
        stays in the cache, a block costs no page faults and is still there when it is multiplied.
        """
        buffer = torch.empty(count, self.size, dtype=self.dtype)
        view = memoryview(buffer.view(torch.uint8).flatten().numpy())  # type: ignore[arg-type]
        end = len(self) if stop is None else min(stop, len(self))
        with (self.folder / "rows.bin").open("rb", buffering=0) as file:
            file.seek(start * self.bytes_per_row)
            for first in range(start, end, count):
                rows = min(count, end - first)
                wanted, done = rows * self.bytes_per_row, 0
                while done < wanted:
                    got = file.readinto(view[done:wanted])
                    if not got:
                        raise StoreError(f"{self.folder}/rows.bin ends before row {first + rows}")
                    done += got
                yield first, buffer[:rows]

    def close(self) -> None:
        """Everything on disk, files closed."""
        for file in (self._rows_file, self._ids_file):
            if file is not None and not file.closed:
                file.flush()
                os.fsync(file.fileno())
                file.close()

    def __enter__(self) -> GradientStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _committed(self) -> list[str]:
        """Ids whose line is complete and whose row is there; StoreError where they cannot be read or come twice."""
        try:
            text = (self.folder / "ids.txt").read_bytes()
            complete = text[: text.rfind(b"\n") + 1].decode().split("\n")[:-1]
            found = complete[: (self.folder / "rows.bin").stat().st_size // self.bytes_per_row]
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{self.folder} is damaged: {error}") from error
        if len(set(found)) < len(found):
            raise StoreError(f"{self.folder} is damaged: ids.txt holds an id twice")
        return found


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError:
        raise StoreError(f"{folder} holds no store (no manifest.json)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{folder}/manifest.json is damaged: {error}") from error
    if fault := _fault(manifest):
        raise StoreError(f"{folder}/manifest.json is damaged: {fault}")
    return manifest


def _fault(manifest: Any) -> str:
    """What is wrong with a manifest; empty where nothing is."""
    if not isinstance(manifest, dict):
        return f"it holds a {type(manifest).__name__}"
    manifest = cast(dict[str, Any], manifest)
    if manifest.get("format") != FORMAT:
        return f"it has format {_short(manifest.get('format'))}; this version reads {FORMAT}"
    size, dtype, meaning = (manifest.get(name) for name in ("size", "dtype", "meaning"))
    if type(size) is not int or not 1 <= size <= LARGEST:
        return f"size is {_short(size)}; it must be a whole number from 1 to {LARGEST:,}"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"dtype is {_short(dtype)}; it must be one of {', '.join(DTYPES)}"
    return "" if isinstance(meaning, dict) else f"meaning is {_short(meaning)}; it must be an object"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _replace(path: Path, value: Any) -> None:
    """The file holds `value` as JSON; a crash leaves the old file or the new one."""
    written = path.with_name(f"{path.name}.part")
    written.write_text(json.dumps(value, indent=1))
    written.replace(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require(folder: Path, stored: Any, asked: Mapping[str, Any]) -> None:
    differing = _differences(stored, json.loads(json.dumps(dict(asked))))
    if differing:
        more = f"; and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise StoreError(f"{folder} holds rows of another meaning: {'; '.join(differing[:SHOWN])}{more}")


def _differences(stored: Any, asked: Any, path: str = "") -> list[str]:
    """Every place where two JSON values differ, named."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        there, wanted = cast(dict[str, Any], stored), cast(dict[str, Any], asked)
        return [
            line
            for key in {**there, **wanted}
            for line in _differences(there.get(key), wanted.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if stored == asked else [f"{path} is {_short(stored)}, asked for {_short(asked)}"]


def _cut(path: Path, size: int) -> None:
    if path.stat().st_size > size:
        os.truncate(path, size)
