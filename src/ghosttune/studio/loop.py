"""Training again with a patch, beside the run it is of and a random control, and what came of it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from ghosttune.config.loading import load_config
from ghosttune.config.rendering import plain_yaml
from ghosttune.errors import InputError
from ghosttune.judging.compare import compare
from ghosttune.run.directory import RunDir, write_json
from ghosttune.studio.folder import Folder
from ghosttune.studio.patches import Line, lines_of, snapshot
from ghosttune.studio.processes import start
from ghosttune.studio.rows import RowIndex
from ghosttune.studio.runs import state_of

KINDS = ("drop", "edit", "weight", "flag", "add")


def retrain(folder: Folder, name: str, rows: RowIndex, control: bool) -> dict[str, Any]:
    """Starts the run again with its patch, and where that drops rows and `control` is wanted, with random drops.

    InputError where nothing was changed, and for a run that is not finished.
    """
    run = folder.run(name)
    if (status := run.read_record()["status"]) != "finished":
        raise InputError(f"{name} is {status}; a comparison needs its end: wait for it, or resume it")
    lines = lines_of(run)
    number = _next(folder, name)
    arms = {"patched": f"{name}-patched-{number}"}
    patches = {"patched": lines}
    if control and any(line.get("drop") for line in lines):
        arms["control"] = f"{name}-control-{number}"
        patches["control"] = control_of(lines, [rows.records[place].example_id for place in range(len(rows.records))])
    texts = {}
    for kind, arm in arms.items():
        folder.new(arm)
        patch = snapshot(patches[kind], folder.own("patches", arm, ".jsonl"))
        config = load_config(run.config, overrides=[f"data.train.patch={json.dumps(str(patch))}", "run.name=null"])
        texts[arm] = plain_yaml(config)
    for arm, text in texts.items():
        start(folder, arm, text, share=len(texts))
    counts = {kind: sum(kind in line for line in lines) for kind in KINDS}
    loop = {"of": name, "arms": arms, "changes": {kind: count for kind, count in counts.items() if count}}
    folder.note("retrained", **loop)
    return loop


def _next(folder: Folder, name: str) -> int:
    """The first number under which nothing was trained again yet."""
    arms = (f"{name}-{kind}-{{}}" for kind in ("patched", "control"))
    places = [place for arm in arms for place in (str(folder.path / arm), str(folder.own("patches", arm, ".jsonl")))]
    return next(number for number in count(1) if not any(Path(place.format(number)).exists() for place in places))


def control_of(lines: Sequence[Line], ids: Sequence[str]) -> list[Line]:
    """The same changes with as many rows dropped, drawn among those that nothing happens to."""
    touched = {line["example_id"] for line in lines}
    dropped = sum(bool(line.get("drop")) for line in lines)
    free = [own for own in ids if own not in touched]
    drawn = random.Random(len(lines)).sample(free, min(dropped, len(free)))
    return [line for line in lines if not line.get("drop")] + [{"example_id": own, "drop": True} for own in drawn]


def loops(folder: Folder) -> list[dict[str, Any]]:
    """Every retraining, the newest first: what was changed, how its arms stand, and what came of it."""
    past = folder.past()
    return [_loop(folder, entry) for entry in reversed(past) if entry["what"] == "retrained"]


def _loop(folder: Folder, entry: Mapping[str, Any]) -> dict[str, Any]:
    arms = {"before": entry["of"], **entry["arms"]}
    states = {arm: _state(folder, name) for arm, name in arms.items()}
    loop = {"at": entry["at"], "changes": entry["changes"], "arms": arms, "states": states, "result": None}
    if all(state == "finished" for state in states.values()):
        loop["result"] = result_of(folder, arms)
    return loop


def _state(folder: Folder, name: str) -> str:
    try:
        run = folder.run(name)
        return state_of(run, run.read_record())
    except InputError as error:
        return "starting" if not (folder.path / name).exists() else str(error)


def result_of(folder: Folder, arms: Mapping[str, str]) -> dict[str, Any]:
    """{arm: {change, verdict, …} of the dev loss, flags}: against the run before, made once and kept.

    With a control, the patched run against that too.
    """
    place = folder.own("comparisons", arms["patched"])
    kept = place / "result.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    try:
        first = compare([folder.run(name).path for name in arms.values()], place)
    except InputError as error:
        return {"error": str(error)}
    names = {str(folder.path / name): arm for arm, name in arms.items()}
    tests = {}
    if "control" in arms:
        pair = [folder.run(arms[arm]).path for arm in ("control", "patched")]
        (second,) = compare(pair, place / "against-control")["tests"].values()
        tests["patched against control"] = second["dev_loss"]
    tests |= {
        f"{_named(first, arm, names)} against before": found["dev_loss"]
        for arm, found in first["tests"].items()
        if "dev_loss" in found
    }
    result = {"dev_loss": tests, "flags": first["flags"]}
    write_json(kept, result)
    folder.note("compared", arms=dict(arms), dev_loss={name: _short(test) for name, test in tests.items()})
    return result


def _named(comparison: Mapping[str, Any], arm: str, names: Mapping[str, str]) -> str:
    """Which of ours an arm of a comparison is."""
    (path,) = comparison["arms"][arm]["runs"]
    return names[str(RunDir(path).path.resolve())]


def _short(test: Mapping[str, Any]) -> dict[str, Any]:
    return {"verdict": test["verdict"], **{name: test["change"][name] for name in ("value", "low", "high")}}
