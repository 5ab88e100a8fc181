"""The files of a run: this module alone knows their names. Everything is written atomically and nothing is pickled."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ghosttune.errors import NoSpace, RunError, listed

if TYPE_CHECKING:
    from ghosttune.run.contents import Contents

LOCK = ".lock"

WRITTEN_FIRST = {LOCK, "checkpoints", "config.yaml", "forgetting", "splits.csv", "tables"}
"""What a run directory holds before run.json, with which the run begins."""

NAMES = {
    LOCK,
    "adapter",
    "checkpoints",
    "config.yaml",
    "evaluation.json",
    "forgetting",
    "gradient_analysis.group_norms.csv",
    "gradient_analysis.layer_norms.csv",
    "gradient_analysis.summary.json",
    "last",
    "metrics.jsonl",
    "predictions",
    "report",
    "rows.patch.jsonl",
    "run.json",
    "splits.csv",
    "store",
    "tables",
    "validation",
}
"""Everything that a run directory holds of its own."""

PARTIAL, REPLACED = ".{}.partial", ".{}.replaced"
"""Names of what is being written, and of what it is about to replace."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a full disk, a full share of it, and a file that may not grow."""


class RunDir:
    """A run directory: where each file is, and how it is written."""

    def __init__(self, path: str | Path, copy_of: Path | None = None):
        self.path = _nameable(Path(path))
        self.known_as = copy_of or self.path
        """What a person calls it."""

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def adapter(self) -> Path:
        """The best adapter."""
        return self.path / "adapter"

    @property
    def last(self) -> Path:
        """The adapter after the last step."""
        return self.path / "last"

    @property
    def splits(self) -> Path:
        return self.path / "splits.csv"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def report(self) -> Path:
        """The page of the run and the numbers behind its figures."""
        return self.path / "report"

    @property
    def patch(self) -> Path:
        """Changes to the rows of this run that somebody has noted, for the next one (`data.train.patch`)."""
        return self.path / "rows.patch.jsonl"

    @property
    def validation(self) -> Path:
        """The run trained again without some of its rows."""
        return self.path / "validation"

    @property
    def validation_result(self) -> Path:
        return self.validation / "validation.json"

    @property
    def forgetting(self) -> Path:
        """The run that it starts from trained anew without what it forgets."""
        return self.path / "forgetting"

    @property
    def retrained(self) -> RunDir:
        return RunDir(self.forgetting / "retrained")

    @property
    def retrained_rows(self) -> Path:
        return self.forgetting / "rows.jsonl"

    @property
    def forgetting_result(self) -> Path:
        return self.forgetting / "forgetting.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tables(self) -> Path:
        return self.path / "tables"

    def table(self, name: str) -> Path:
        """A table's folder of Parquet parts."""
        return self.tables / f"{name}.parquet"

    def export(self, name: str) -> Path:
        """A table as CSV."""
        return self.tables / f"{name}.csv"

    def gradient_analysis(self, name: str) -> Path:
        """`group_norms.csv`, `layer_norms.csv` or `summary.json`."""
        return self.path / f"gradient_analysis.{name}"

    def predictions(self, split: str) -> Path:
        return self.path / "predictions" / f"{split}.jsonl"

    def store(self, rows: str, step: int) -> Path:
        """Gradients of the rows of that name (`train`, or a file's) at a checkpoint."""
        return self.path / "store" / rows / f"step-{step}"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step}"

    def checkpoint_steps(self) -> list[int]:
        """Steps with a complete checkpoint, in order."""
        if not self.checkpoints.is_dir():
            return []
        names = [
            folder.name.removeprefix("step-")
            for folder in self.checkpoints.iterdir()
            if folder.name.startswith("step-")
        ]
        return sorted(int(name) for name in names if name.isdigit())

    @property
    def resume_command(self) -> str:
        """What a person types to continue this run."""
        return f"ghosttune train --resume --out {shlex.quote(str(self.known_as))}"

    @property
    def exists(self) -> bool:
        """Whether a run was ever started here."""
        return self.record.is_file()

    def require_unused(self) -> None:
        """RunError when the folder holds anything, or when something else has its name.

        What the start of a run leaves that was cut off before run.json is nothing: the next start writes over it.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunError(f"{self.path} is a file; a run needs a folder of its own")
        require_contained(self.path, NAMES)
        if any(self.path.iterdir()) and not self._never_began():
            raise RunError(self._in_use())

    def _never_began(self) -> bool:
        """Whether all there is was written by us, before a first run.json: only we make a lock in a folder."""
        names = {entry.name for entry in self.path.iterdir() if not entry.match(PARTIAL.format("*"))}
        return LOCK in names <= WRITTEN_FIRST and not (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))

    def create(self) -> RunDir:
        """Makes the folder; RunError when it is used, or cannot be written to."""
        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self.require_unused()
            self.checkpoints.mkdir(exist_ok=True)
        return self

    def open(self) -> RunDir:
        """This directory, if it holds a run whose files are its own; RunError otherwise."""
        if not self.exists:
            reason = "does not exist" if not self.path.exists() else "holds no run (no run.json)"
            raise RunError(f"{self.path} {reason}; `ghosttune train CONFIG --out` starts one")
        require_contained(self.path, NAMES)
        return self

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process out of this run; the lock goes with the process, however it ends."""
        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            require_contained(self.path, NAMES)
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise RunError(
                f"{self.path} is being written by another process; wait for it, or use another --out"
            ) from None
        try:
            yield
        finally:
            os.close(handle)

    def _in_use(self) -> str:
        if not self.exists:
            return f"{self.path} is not empty and holds no run; give an empty or new folder"
        status = self.read_record()["status"]
        way_out = "" if status == "finished" else f", or continue it with `{self.resume_command}`"
        return f"{self.path} already holds a run ({status}). Choose another folder with --out{way_out}."

    def read_record(self) -> dict[str, Any]:
        """The contents of run.json; RunError when they are not what was written."""
        from ghosttune.run.contents import Record, read_contents

        remedy = "restore it, or start a new run"
        try:
            text = self.record.read_bytes()
        except OSError as error:
            raise RunError(f"{self.record} is damaged: {error}; {remedy}") from error
        return read_contents(text, Record, self.record, remedy)

    def write_record(self, record: dict[str, Any]) -> None:
        write_json(self.record, record)

    def append_event(self, event: dict[str, Any]) -> None:
        """One line of metrics.jsonl, on disk before this returns."""
        with explained(self.path), open(self.metrics, "ab") as file:
            file.write((json.dumps(event, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> list[dict[str, Any]]:
        """The recorded events; a line cut short by a crash is not one, and RunError names any other damage."""
        from ghosttune.run.contents import Event

        lines = self.metrics.read_bytes().split(b"\n") if self.metrics.is_file() else [b""]
        remedy = "mend this line, or restore the file"
        return [_line(line, Event, self.metrics, number, remedy) for number, line in enumerate(lines[:-1], 1) if line]

    def read_evaluation(self) -> dict[str, Any]:
        """The contents of evaluation.json; empty when no rows were answered, RunError when it is damaged."""
        from ghosttune.run.contents import Evaluation, read_contents

        if not self.evaluation.is_file():
            return {}
        return read_contents(self.evaluation.read_bytes(), Evaluation, self.evaluation, EVALUATE_AGAIN)

    def read_predictions(self, split: str) -> list[dict[str, Any]]:
        """The answered rows of a split; none when there is no file, RunError when it is damaged."""
        from ghosttune.run.contents import Answer

        path = self.predictions(split)
        lines = path.read_bytes().split(b"\n") if path.is_file() else []  # text may hold other line ends
        return [_line(line, Answer, path, number, EVALUATE_AGAIN) for number, line in enumerate(lines, 1) if line]

    def require_events(self, step: int, count: int) -> None:
        """RunError unless all `count` events up to this step are there."""
        have = sum(event["step"] <= step for event in self.events())
        if have != count:
            missing = "is missing" if not self.metrics.is_file() else f"holds {have} of the {count} events"
            raise RunError(
                f"{self.metrics} {missing} up to step {step}, from which the run would continue; "
                "restore it, or start a new run"
            )

    def forget_events_after(self, step: int) -> None:
        """Removes the events of steps that a resumed run will do again."""
        kept = [event for event in self.events() if event["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(event) + "\n" for event in kept))

    def remove_partial_writes(self) -> None:
        """Removes what a killed process had begun to write and nobody will finish."""
        for leftover in [found for name in (PARTIAL, REPLACED) for found in self.path.rglob(name.format("*"))]:
            _remove(leftover)


EVALUATE_AGAIN = "evaluate the run again, or remove the file"


def _line(text: bytes, kind: type[Contents], file: Path, number: int, remedy: str) -> dict[str, Any]:
    """What a line of JSON holds; RunError where it is damaged."""
    from ghosttune.run.contents import read_contents

    return read_contents(text, kind, f"{file}:{number}", remedy)


def require_contained(folder: Path, names: Iterable[str]) -> None:
    """RunError unless the files of these names, and all below them, are ordinary ones: no links, pipes or devices.

    A folder from elsewhere could have us read or write whatever it links to. `folder` itself may be a link.
    """
    with explained(folder):
        strange = sorted(path for name in names for path in _strange(folder / name))
    if strange:
        found = listed((path.relative_to(folder) for path in strange), 5)
        raise RunError(
            f"{folder} leads out of itself: {found} is a link, or no ordinary file. Put a copy in its place "
            "if you know what it leads to (`cp -rL`); all of a run may lie elsewhere behind one link"
        )


def _strange(path: Path) -> Iterator[Path]:
    """What is neither a file nor a folder, from `path` downwards; links are not followed."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        for entry in sorted(os.listdir(path)):
            yield from _strange(path / entry)
    elif not stat.S_ISREG(mode):
        yield path


def _nameable(path: Path) -> Path:
    """The path; RunError where no file can be called so, or none of ours could say so."""
    try:
        str(path).encode()
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):  # it may be new, or the name of a model on the hub
        pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it must be UTF-8 without NUL"
        raise RunError(f"{str(path)!r} cannot be the name of a folder here: {reason}") from error
    return path


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns failures of the file system into messages that say what to do: NoSpace for a full disk, else RunError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise NoSpace(path, error.strerror) from error
        raise RunError(
            f"{path} cannot be written: {error.strerror}; make it writable, or have it written elsewhere"
        ) from error


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A name to write under until the contents are complete; nothing stays under it when the writing fails."""
    partial = path.with_name(PARTIAL.format(path.name))
    _remove(partial)
    try:
        yield partial
    except BaseException:
        _remove(partial)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces the file by one holding `text`; a crash leaves the old file or the new one."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _partial(path) as partial:
            with open(partial, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        _sync_folder(path.parent)


def write_file(path: Path, fill: Callable[[Path], None]) -> None:
    """Replaces the file by the one that `fill` writes; a crash leaves the old file or the new one."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _partial(path) as partial:
            fill(partial)
            _sync_file(partial)
            os.replace(partial, path)
        _sync_folder(path.parent)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file with a header; None is an empty cell, and text that a spreadsheet would run is marked (`_marked`)."""

    def fill(partial: Path) -> None:
        with open(partial, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(_LineFeeds(file), lineterminator="\r\n")  # it quotes a cell with either of the two
            writer.writerow(map(_marked, columns))
            writer.writerows(map(_marked, row) for row in rows)

    write_file(path, fill)


class _LineFeeds:
    """Where `csv.writer` writes its lines, each ending in a line feed alone."""

    def __init__(self, file: TextIO):
        self.file = file

    def write(self, line: str) -> None:
        self.file.write(line.removesuffix("\r\n") + "\n")


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file that `write_csv` wrote, with the text that was given to it."""
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = [[cell.removeprefix(MARK) for cell in row] for row in csv.reader(file)] or [[]]
    return [dict(zip(header, row, strict=False)) for row in rows]


MARK = "'"
"""In front of a cell it says to a spreadsheet that text follows."""

RUN_BY_SPREADSHEETS = re.compile(r"[=+\-@\t\n\r＝＋－＠']")
"""How a cell begins that some program runs, or that would lose its first character when marks are removed."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def _marked(cell: Any) -> Any:
    """The cell, or, of text that a spreadsheet would run, the text behind an apostrophe; one less gives it back.

    Numbers stay numbers, also those that are text (`-0.5`): they do nothing.
    """
    if isinstance(cell, str) and RUN_BY_SPREADSHEETS.match(cell) and not NUMBER.fullmatch(cell):
        return MARK + cell
    return cell


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A line of JSON per row; what JSON has no notation for, such as a date, is text."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Replaces the folder by one that `fill` has written; it appears under its name only when it is complete."""
    with explained(path), _partial(path) as partial:
        partial.mkdir(parents=True)
        fill(partial)
        for file in partial.rglob("*"):
            _sync_file(file)
        _sync_folder(partial)
        if path.exists():
            replaced = path.with_name(REPLACED.format(path.name))
            _remove(replaced)
            os.rename(path, replaced)
            os.rename(partial, path)
            _remove(replaced)
        else:
            os.rename(partial, path)
        _sync_folder(path.parent)


def _sync_file(path: Path) -> None:
    if path.is_file():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
