"""Runs as a table, and one run in short: read from run directories, nothing computed twice."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from typing import Any

import yaml

from ghosttune.config.rendering import inline
from ghosttune.errors import InputError
from ghosttune.reports.reading import RunNumbers
from ghosttune.reports.verdict import reservations
from ghosttune.run.directory import LOCK, RunDir
from ghosttune.studio.folder import Folder
from ghosttune.studio.processes import started_here

MOST_SETTINGS = 8
"""Settings of a run that are shown as what differs."""

OWN_SETTINGS = ("run.",)
"""Settings that say where a run lies, and nothing of what it is."""


def state_of(run: RunDir, record: Mapping[str, Any]) -> str:
    """running, finished, stopped, failed; or crashed: it says that it runs, and no process holds its lock."""
    if record["status"] != "running":
        return record["status"]
    return "running" if is_held(run) else "crashed"


def is_held(run: RunDir) -> bool:
    """Whether a process holds the run's lock. It is taken for a moment to see that, by runs that say they go on."""
    try:
        handle = os.open(run.path / LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)


def table(folder: Folder) -> list[dict[str, Any]]:
    """A line per run, the newest first; a run that cannot be read says why."""
    lines, settings = [], {}
    for name in folder.names():
        try:
            run = RunDir(folder.path / name)
            record = run.read_record()
            settings[name] = settings_of(run)
            lines.append({"name": name, "state": state_of(run, record), **_in_short(record, settings[name])})
        except (InputError, OSError, yaml.YAMLError) as error:
            lines.append({"name": name, "state": "unreadable", "error": str(error), "started": ""})
    differing = _differing(settings)
    for line in lines:
        own = settings.get(line["name"], {})
        line["differs"] = {key: inline(own[key]) for key in differing if key in own}
    return sorted(lines, key=lambda line: line["started"], reverse=True)


def _in_short(record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    judged = record.get("verdict") or {}
    return {
        "started": record["started"],
        "model": record["model"]["name"],
        "method": settings.get("method.type"),
        "step": record["step"],
        "max_steps": settings.get("train.max_steps"),
        "verdict": judged.get("verdict"),
        "dev_loss_base": judged.get("dev_loss_base"),
        "dev_loss": judged.get("dev_loss"),
        "change": judged.get("change"),
        "seconds": sum(record.get("stage_seconds", {}).values()),
        "rows": record["data"]["rows"],
        "patch": record["data"].get("patch"),
    }


def settings_of(run: RunDir) -> dict[str, Any]:
    """Dotted path -> value, as config.yaml holds it."""
    with open(run.config, encoding="utf-8") as file:
        return dict(_flat(yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}))


def _flat(tree: Mapping[str, Any], above: str = "") -> Any:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _differing(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The settings in which these runs differ, those first in which most of them do."""
    names = dict.fromkeys(name for own in settings.values() for name in own if not name.startswith(OWN_SETTINGS))
    kinds = {name: len({repr(own.get(name)) for own in settings.values()}) for name in names}
    return sorted((name for name in names if kinds[name] > 1), key=lambda name: kinds[name])[:MOST_SETTINGS]


def summary(folder: Folder, name: str) -> dict[str, Any]:
    """What the page of a run begins with."""
    run = folder.run(name)
    numbers, record = RunNumbers(run), run.read_record()
    settings = settings_of(run)
    state = state_of(run, record)
    return {
        "name": name,
        "state": state,
        **_in_short(record, settings),
        "error": record.get("error"),
        "ended": record.get("ended"),
        "best_step": record.get("best_step"),
        "tokens_per_second": record.get("tokens_per_second"),
        "memory": record.get("peak_memory_mb", {}),
        "left_out": record["left_out"],
        "columns": (record.get("ledger") or {}).get("columns", {}),
        "notes": reservations(numbers) if state == "finished" else [],
        "report": (run.report / "index.html").is_file(),
        "config": run.config.read_text(encoding="utf-8"),
        "started_here": started_here(folder, name),
        "resume": run.resume_command,
    }


def answers(folder: Folder, name: str) -> list[dict[str, Any]]:
    """The answered dev rows, those first that the adapter got worst."""
    return sorted(folder.run(name).read_predictions("dev"), key=_goodness)


def _goodness(row: Mapping[str, Any]) -> float:
    """The mean of the answer's scores, such as an exact match and a chrF; those of other scales weigh as they are."""
    known = [value for value in row["scores"].values() if value is not None]
    return sum(known) / len(known) if known else 0.0
