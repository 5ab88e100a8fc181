"""A configuration as text that somebody is writing: what is wrong, and in which line."""

from __future__ import annotations

import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from ghosttune.config.layers import shipped
from ghosttune.config.loading import TRUST, read_config, value_at
from ghosttune.errors import InputError
from ghosttune.studio.folder import Folder
from ghosttune.workflows.show import show

LINE = re.compile(r"(?:run\.yaml:|line )(\d+)")

LARGEST = 200_000
"""Characters of a configuration."""


def faults(text: str) -> list[dict[str, Any]]:
    """{setting, message, line} of everything that is wrong with the text; line 0 for what stands in none."""
    if len(text) > LARGEST:
        return [{"setting": "", "message": f"is longer than {LARGEST:,} characters", "line": 0}]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(text, encoding="utf-8")
        try:
            config, problems = read_config(file)
        except InputError as error:
            message = str(error).replace(str(file), "line").replace("line:", "line ")
            return [{"setting": "", "message": message, "line": _line(str(error))}]
    found = [{"setting": one.setting, "message": one.message, "line": _line(one.origin)} for one in problems]
    if not found and value_at(config, TRUST):
        message = "lets code of the model run, which the studio does not start: `ghosttune train` in a terminal does"
        found.append({"setting": TRUST, "message": message, "line": _line(config.origins[TRUST])})
    return found


def _line(text: str) -> int:
    found = LINE.search(text)
    return int(found[1]) if found else 0


@cache
def settings() -> list[dict[str, str]]:
    """{setting, what, takes, default} of everything that may be set, as `ghosttune show settings` has them."""
    found = (show("settings", name)[1] for name in show("settings", None)[1])
    return [
        {
            "setting": one["name"],
            "what": one["what"],
            "takes": one["how"].partition("; --set")[0],
            "default": one["default"],
        }
        for one in found
    ]


def beginnings() -> list[str]:
    """The presets, by name."""
    return list(shipped("preset"))


def beginning(folder: Folder, preset: str | None, run: str | None) -> str:
    """The text to begin with: a preset, or what a run was trained with."""
    if preset is not None:
        known = shipped("preset")
        if preset not in known:
            raise InputError(f"no preset is called {preset!r}")
        return known[preset].read_text(encoding="utf-8")
    return folder.run(run or "").config.read_text(encoding="utf-8")
