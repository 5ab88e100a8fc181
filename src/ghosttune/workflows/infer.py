"""The rows of a file answered into another one: in order, with their ids, and from where it stopped."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ghosttune.data.columns import RowFault, list_of, text_of
from ghosttune.data.files import fingerprint, shown
from ghosttune.data.images import opened
from ghosttune.data.labelled import LABELLED_COLUMNS, SAID
from ghosttune.data.records import ID_COLUMNS, prompt_of
from ghosttune.data.showing import image_root
from ghosttune.data.turns import images_of
from ghosttune.errors import DataError, InputError, ModelError, RunError, listed
from ghosttune.foreign import open_file, read_json
from ghosttune.inference.pipeline import Pipeline, record_of
from ghosttune.inference.sampling import GREEDY, Sampling
from ghosttune.judging.engines import open_pipeline
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
    fields: dict[str, Any]
    fault: str = ""


def infer(
    run_or_model: str,
    source: Path,
    output: Path,
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    engine: str = "transformers",
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] = lambda done, rows: None,
) -> Inferred:
    """Writes one line per row of `source` to `output`: `example_id`, `output`, `tokens`, `stopped`; or `error`.

    A row of JSONL or CSV asks with `prompt`, `messages` or `instruction` (and `input`), and shows what `image` or
    `images` name; or it asks with the columns of the run's task but the label: `output` is then what is predicted, and
    further entries say how sure. An unfinished output is continued, to
    the bytes it would have had, when input, weights and settings are the same, else RunError; a row that cannot be
    answered costs no other. `engine` is what writes the answers: transformers, or vllm.
    """
    rows = list(_read(source))
    settings = {"model": run_or_model, "engine": engine, "max_new_tokens": max_new_tokens, **asdict(sampling)}
    done = _begun(output, {"input": fingerprint(source), "rows": len(rows), **settings})
    if len(done) < len(rows):
        try:
            pipeline = open_pipeline(run_or_model, engine, device, trust_remote_code)
        except InputError:
            if not output.exists():
                _note(output).unlink()
            raise
        if not pipeline.writes and (max_new_tokens is not None or sampling != GREEDY):
            _note(output).unlink()
            raise InputError(
                f"{run_or_model} does not write behind prompts: the settings of an answer (--max-new-tokens, "
                "--temperature and so on) do nothing for it; leave them out"
            )
        if not pipeline.writes and "preference" in pipeline.task.formats:
            _note(output).unlink()
            raise InputError(
                f"{run_or_model} judges pairs of answers: `ghosttune evaluate {run_or_model} --data FILE` says "
                "what each is worth"
            )
        _require_weights(output, run_or_model, pipeline.digest)
        for start in range(len(done), len(rows), ROWS_TOGETHER):
            block = rows[start : start + ROWS_TOGETHER]
            drawn = Sampling(**{**asdict(sampling), "seed": sampling.seed + start})
            if pipeline.writes:
                _append(output, _answered(pipeline, block, image_root(source), max_new_tokens, drawn))
            else:
                _append(output, _predicted(pipeline, block))
            progress(start + len(block), len(rows))
    _note(output).unlink(missing_ok=True)
    faults = [f"{line['example_id']}: {line['error']}" for line in _lines(output) if "error" in line]
    return Inferred(str(output), len(rows), len(done), faults)


def _read(source: Path) -> Iterator[_Asked]:
    """Every line that is not blank, or row of a table, as a question or as what is wrong with it."""
    try:
        with open_file(source) as file:
            whole = file.read()
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}; --input takes a JSONL or CSV file") from error
    if source.suffix.lower() == ".csv":
        yield from _of_table(whole, source)
        return
    lines = whole.splitlines()
    if not any(line.strip() for line in lines):
        raise DataError(f"{source} holds no rows")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _asked(line, f"{source.name}:{number}")


def _of_table(whole: bytes, source: Path) -> Iterator[_Asked]:
    """The rows of a CSV file below its header; empty cells are as if they were not there."""
    try:
        table = list(csv.DictReader(io.StringIO(whole.decode("utf-8-sig"), newline=""), strict=True))
    except (ValueError, csv.Error) as error:
        raise DataError(f"{source} is not CSV in UTF-8: {error}") from error
    if not table:
        raise DataError(f"{source} holds no rows below its header")
    for number, cells in enumerate(table, start=1):
        place = f"{source.name}[{number}]"
        if None in cells or None in cells.values():
            yield _Asked(place, {}, "has more or fewer cells than the header")
            continue
        fields = {name: value for name, value in cells.items() if value}
        yield _Asked(next((fields[name] for name in ID_COLUMNS if name in fields), place), fields)


def _asked(line: bytes, place: str) -> _Asked:
    try:
        fields = read_json(line.decode("utf-8-sig"))
    except ValueError as error:
        return _Asked(place, {}, f"not valid JSON: {error}")
    if not isinstance(fields, dict):
        return _Asked(place, {}, f"must be an object, is {shown(fields)}")
    own = next((fields[name] for name in ID_COLUMNS if fields.get(name) not in (None, "")), place)
    return _Asked(str(own), fields)


def _answered(
    pipeline: Pipeline, rows: list[_Asked], root: Path, max_new_tokens: int | None, sampling: Sampling
) -> list[dict[str, Any]]:
    """The lines of a block: rows whose prompt cannot be made are set aside before the others are asked together.

    Images lie below `root`.
    """
    lines: list[dict[str, Any]] = []
    prompts: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        fault = row.fault
        if not fault:
            try:
                turns = prompt_of(row.fields, root)
                for image in images_of(turns):
                    opened(image)  # one that is cut short must not cost the others their answers
                prompts[place] = pipeline.prompt_ids(turns, max_new_tokens)
            except (RowFault, DataError, ModelError) as error:
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


def _predicted(pipeline: Pipeline, rows: list[_Asked]) -> list[dict[str, Any]]:
    """The lines of a block for a task that does not write behind a prompt; rows that cannot be read are set aside."""
    lines: list[dict[str, Any]] = []
    given: dict[int, dict[str, Any]] = {}
    for place, row in enumerate(rows):
        fault = row.fault
        if not fault:
            try:
                given[place] = _given(row.fields, pipeline.task.formats)
                pipeline.reader.encode([record_of(row.example_id, given[place])])
            except (RowFault, DataError, ModelError) as error:
                given.pop(place, None)
                fault = str(error)
        lines.append({"example_id": row.example_id, "error": fault})
    for place, said in zip(given, pipeline.predict(list(given.values())), strict=True):
        lines[place] = {"example_id": rows[place].example_id, "output": said.output, **said.details}
    return lines


def _given(fields: dict[str, Any], formats: Sequence[str]) -> dict[str, Any]:
    """The columns that the task reads, of a row without its answer; RowFault says which are missing."""
    if "prompt_completion" in formats:
        return {"prompt": "\n".join(turn.words for turn in prompt_of(fields))}
    ways = [[name for name in LABELLED_COLUMNS[kind] if name not in SAID] for kind in formats]
    for names in ways:
        if all(name in fields for name in names):
            return {name: list_of(fields, name) if name == "tokens" else text_of(fields, name) for name in names}
    needed = " or ".join(" and ".join(names) for names in ways)
    raise RowFault(f"has the columns {listed(fields) or 'none'}; needed are {needed}")


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
    return _answered_before(output, settings["rows"]) if output.exists() else []


def _require_weights(output: Path, model: str, weights: str) -> None:
    """RunError unless every line so far is of these weights."""
    note = _note(output)
    begun = json.loads(note.read_text(encoding="utf-8"))
    if begun.get("weights") not in (None, weights):  # None: nothing is answered yet
        raise RunError(
            f"{output} was begun with other weights of {model}, which were replaced since; restore them to continue "
            "it, or give another --output"
        )
    write_json(note, begun | {"weights": weights})


def _answered_before(output: Path, rows: int) -> list[dict[str, Any]]:
    """The lines that stay: whole blocks, since a row's answer may depend on the rows it is asked with."""
    lines = _lines(output)
    if len(lines) < rows and len(lines) % ROWS_TOGETHER:
        lines = lines[: len(lines) - len(lines) % ROWS_TOGETHER]
        with open(output, "rb+") as file:
            for _ in lines:
                file.readline()
            file.truncate(file.tell())
    return lines


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
