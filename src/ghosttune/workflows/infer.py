"""The rows of a file answered into another one: in order, with their ids, and from where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ghosttune.data.files import fingerprint, shown
from ghosttune.data.records import ID_COLUMNS, RowFault, Turn, prompt_of
from ghosttune.errors import DataError, ModelError, RunError
from ghosttune.inference.pipeline import Pipeline
from ghosttune.inference.sampling import GREEDY, Sampling
from ghosttune.run.directory import explained, write_json

ROWS_TOGETHER = 256
"""Rows answered between two writes: what is lost when the process is killed."""


@dataclass(frozen=True)
class Inferred:
    """What has been done with a file."""

    output: str
    rows: int
    already: int
    """Rows that an earlier, interrupted command had answered."""
    faults: list[str]
    """Rows without an answer, and why; the others are done."""


@dataclass(frozen=True)
class _Asked:
    example_id: str
    turns: tuple[Turn, ...] | None
    fault: str = ""


def infer(
    run_or_model: str,
    source: Path,
    output: Path,
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, rows: None,
) -> Inferred:
    """Writes one line per row of `source` (JSONL) to `output`: `example_id`, `output`, `tokens`, `stopped`; or `error`.

    A row asks with `prompt`, `messages` or `instruction` (and `input`). An unfinished output is continued when input,
    model and settings are the same, else RunError; a row that cannot be answered costs no other.
    """
    rows = list(_read(source))
    settings = {"model": run_or_model, "max_new_tokens": max_new_tokens, **asdict(sampling)}
    done = _begun(output, {"input": fingerprint(source), "rows": len(rows), **settings})
    if len(done) < len(rows):
        pipeline = Pipeline.open(run_or_model, device)
        for start in range(len(done), len(rows), ROWS_TOGETHER):
            block = rows[start : start + ROWS_TOGETHER]
            drawn = Sampling(**{**asdict(sampling), "seed": sampling.seed + start})
            _append(output, _answered(pipeline, block, max_new_tokens, drawn))
            progress(start + len(block), len(rows))
    _note(output).unlink(missing_ok=True)
    faults = [f"{line['example_id']}: {line['error']}" for line in _lines(output) if "error" in line]
    return Inferred(str(output), len(rows), len(done), faults)


def _read(source: Path) -> Iterator[_Asked]:
    """Every line that is not blank, as a question or as what is wrong with it."""
    try:
        lines = source.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}; --input takes a JSONL file") from error
    if not any(line.strip() for line in lines):
        raise DataError(f"{source} holds no rows")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _asked(line, f"{source.name}:{number}")


def _asked(line: bytes, place: str) -> _Asked:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return _Asked(place, None, f"not valid JSON: {error}")
    if not isinstance(fields, dict):
        return _Asked(place, None, f"must be an object, is {shown(fields)}")
    own = next((fields[name] for name in ID_COLUMNS if fields.get(name) not in (None, "")), place)
    try:
        return _Asked(str(own), prompt_of(fields))
    except RowFault as fault:
        return _Asked(str(own), None, str(fault))


def _answered(
    pipeline: Pipeline, rows: list[_Asked], max_new_tokens: int | None, sampling: Sampling
) -> list[dict[str, Any]]:
    """The lines of a block: rows whose prompt cannot be made are set aside before the others are asked together."""
    lines: list[dict[str, Any]] = []
    prompts: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        fault = row.fault
        if row.turns is not None:
            try:
                prompts[place] = pipeline.prompt_ids(row.turns, max_new_tokens)
            except (DataError, ModelError) as error:
                fault = str(error)
        lines.append({"example_id": row.example_id, "error": fault})
    answers = pipeline.generate(list(prompts.values()), max_new_tokens=max_new_tokens, sampling=sampling)
    for place, answer in zip(prompts, answers, strict=True):
        lines[place] = {
            "example_id": rows[place].example_id,
            "output": answer.text,
            "tokens": answer.tokens,
            "stopped": answer.stopped,
        }
    return lines


def _note(output: Path) -> Path:
    """Lies beside an unfinished output and says what it is made from."""
    return output.with_name(f".{output.name}.unfinished.json")


def _begun(output: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines that an earlier command has written, once it is sure that they belong to this one."""
    note = _note(output)
    if not note.is_file():
        if output.exists():
            raise RunError(f"{output} exists and is finished; give another --output, or remove it")
        write_json(note, settings)
        return []
    begun = json.loads(note.read_text(encoding="utf-8"))
    changed = [name for name, value in settings.items() if begun.get(name) != value]
    if changed:
        before, now = ({name: values.get(name) for name in changed} for values in (begun, settings))
        raise RunError(
            f"{output} was begun with {shown(before)}, now it is {shown(now)}; ask as before to continue it, or give "
            "another --output"
        )
    return _lines(output) if output.exists() else []


def _lines(output: Path) -> list[dict[str, Any]]:
    """The complete lines; one that a kill cut short is removed from the file."""
    text = output.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        with open(output, "rb+") as file:
            file.truncate(len(whole))
    return [json.loads(line) for line in whole.decode().split("\n") if line]


def _append(output: Path, lines: list[dict[str, Any]]) -> None:
    with explained(output), open(output, "ab") as file:
        file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "replace"))
        file.flush()
        os.fsync(file.fileno())
