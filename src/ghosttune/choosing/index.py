"""The store of every row's gradient at one or several checkpoints of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ghostgrad import Sketcher
from ghostgrad.store import DTYPES, GradientStore, StoreError
from ghosttune.choosing.opened import OpenedRun, Rows, sketch_error
from ghosttune.errors import InputError, RunError, listed
from ghosttune.run.directory import explained
from ghosttune.training.dealing import dealt_sketches, send_sketches
from ghosttune.training.processes import agreed, meet, rank
from ghosttune.training.sketching import AUTO, is_exact, sketcher_of

Tell = Callable[[int, int], None]
"""Called with how many rows of how many are stored."""


PROJECTED = {"kind": "--projection", "split": "--split", "seed": "--seed"}
"""Options that whole gradients do without -> what they are called on the command line."""


@dataclass(frozen=True)
class Indexed:
    """A complete store."""

    step: int
    folder: str
    rows: int
    added: int
    """Rows whose gradients were not there yet."""
    exact: bool
    """Whether whole gradients are kept, or projections of them."""
    numbers_per_row: int
    bytes: int
    error: dict[str, Any] | None
    """How far cosines are from those of whole gradients (`ghostgrad.sketch.ErrorBar`); None where they are exact."""


def index(
    run: str | Path,
    data: str | Path | None = None,
    *,
    checkpoints: Sequence[str] = ("best",),
    kind: str = AUTO,
    changes: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    tell: Tell | None = None,
) -> list[Indexed]:
    """Stores the gradient of every training row, or of every row of a file, at each of the checkpoints.

    What is stored already stays: a call that was cut off is taken up where it ended, each row once. Where several
    processes call this, they share the rows, and process 0 stores them all and returns what is stored; the others
    return nothing.

    Args:
        checkpoints: `best`, `last`, `all`, or steps.
        kind: `auto` (whole gradients where all fit into 256 MiB, else `standard@1`), or one of `ghostgrad.PROFILES`.
        changes: options of the sketch to replace, such as {"size": 1024} (`ghostgrad.SketchOptions`).
        batch_size: rows of one forward and backward; the run's own batch where it is not given.
        trust_remote_code: whether code that comes with the run's model may run.

    Raises InputError where the run, the rows or the options do not allow it, or a store of another meaning is there.
    """
    opened = OpenedRun(run, device, trust_remote_code)
    rows, steps = opened.rows(data), opened.steps(checkpoints)
    meet(on_cpu=opened.config.model.device == "cpu")
    sketcher = sketcher_of(opened.row_facts, opened.parameters, len(rows.ids), kind, changes)
    idle = [option for name, option in PROJECTED.items() if name in (changes or {})]
    if idle and is_exact(sketcher):
        raise InputError(f"{listed(idle)} would do nothing: whole gradients are kept; lower --size, or leave them out")
    if rank():
        for step in steps:
            _help(opened, rows, step, sketcher, batch_size)
        return []
    with opened.run.locked():
        return [
            _index(opened, rows, step, sketcher, batch_size, tell or (lambda done, all_rows: None)) for step in steps
        ]


def sketch_changes(**given: Any) -> dict[str, Any]:
    """The options of a sketch that are given (not None), as `ghostgrad.SketchOptions` takes them."""
    changes = {name: value for name, value in given.items() if value is not None}
    if "layers" in changes:
        changes["layers"] = tuple(changes["layers"])
    if "dtype" in changes:
        if changes["dtype"] not in DTYPES:
            raise InputError(f"dtype is {changes['dtype']!r}; accepted are {listed(DTYPES)}")
        changes["dtype"] = DTYPES[changes["dtype"]]
    return changes


def _index(opened: OpenedRun, rows: Rows, step: int, sketcher: Sketcher, batch_size: int | None, tell: Tell) -> Indexed:
    meaning = opened.meaning(rows, step) | {"sketch": sketcher.manifest()}
    folder = opened.run.store(rows.name, step)
    try:
        if GradientStore.is_sealed(folder):
            added = len(agreed([]))
        else:
            added = _complete(opened, rows, step, sketcher, meaning, batch_size, tell)
        store = GradientStore.read_sealed(folder)
        store.require(meaning)
    except StoreError as error:
        raise RunError(f"{error}. Delete the folder to make it anew, or give the options it was made with") from error
    return Indexed(
        step,
        str(folder),
        len(store),
        added,
        is_exact(sketcher),
        store.size,
        len(store) * store.bytes_per_row,
        sketch_error(store),
    )


def _complete(
    opened: OpenedRun,
    rows: Rows,
    step: int,
    sketcher: Sketcher,
    meaning: dict[str, Any],
    batch_size: int | None,
    tell: Tell,
) -> int:
    """Stores the gradients that are missing and seals the store; how many they were."""
    gradients = opened.gradients(step, sketcher, batch_size)
    error = None if is_exact(sketcher) else asdict(gradients.error(rows.features))
    folder = opened.run.store(rows.name, step)
    with explained(folder), _opened_store(folder, sketcher, meaning) as store:
        missing = agreed([name for name in rows.ids if name not in store])
        for ids, sketches in dealt_sketches(gradients, rows.features, set(missing)):
            new = [place for place, name in enumerate(ids) if name not in store]
            store.append([ids[place] for place in new], sketches[new])
            tell(len(store), len(rows.ids))
        store.seal({"error": error})
    return len(missing)


def _help(opened: OpenedRun, rows: Rows, step: int, sketcher: Sketcher, batch_size: int | None) -> None:
    """This process's share of the gradients that are missing."""
    missing = agreed(None)
    if missing:
        send_sketches(opened.gradients(step, sketcher, batch_size), rows.features, set(missing))


def _opened_store(folder: Path, sketcher: Sketcher, meaning: dict[str, Any]) -> GradientStore:
    if (folder / "manifest.json").exists():
        return GradientStore.append_to(folder, meaning=meaning)
    return GradientStore.create(folder, size=sketcher.size, dtype=sketcher.options.dtype, meaning=meaning)
