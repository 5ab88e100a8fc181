"""Every command of the tutorial works, in order, in an empty folder."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ghosttune.cli.main import app

TUTORIAL = (Path(__file__).parent.parent.parent / "docs" / "tutorial.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """The commands of all bash blocks; what comes between two ghosttune commands is one script."""
    parts: list[list[str]] = [[]]
    for block in re.findall(r"```bash\n(.*?)```", TUTORIAL, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("ghosttune "):
                parts += [[line], []]
            else:
                parts[-1].append(line)
    return ["\n".join(lines) for lines in parts if lines]


def printed_by(command: str) -> str:
    """What a command prints; ghosttune's run in this process, which has its imports already."""
    if not command.startswith("ghosttune "):
        done = subprocess.run(["bash", "-eu", "-c", command], capture_output=True, text=True, timeout=1400)
        assert done.returncode == 0, command + done.stderr
        return done.stdout
    line, _, target = command.partition(" > ")
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception!r}"
    if target:
        Path(target).write_text(result.stdout, encoding="utf-8")
    return result.stdout


@pytest.mark.slow(seconds=35)
def test_every_command_works_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = {command: printed_by(command) for command in commands()}
    assert len(printed) > 15
    (answer,) = (text for command, text in printed.items() if "ghosttune chat" in command)
    assert answer.strip() == "Good evening, Clara!", "a name that stands in no row"
    (trained,) = (text for command, text in printed.items() if command.endswith("--out runs/first"))
    assert "better" in trained
    kept = (tmp_path / "kept.jsonl").read_text(encoding="utf-8")
    assert 0 < len(kept.splitlines()) < 60
    assert (tmp_path / "runs" / "first" / "report" / "index.html").is_file()
