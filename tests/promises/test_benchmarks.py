"""Every benchmark still runs: each script's `--quick`, made to end in seconds, in a process of its own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from forking import Forks, forks

REPOSITORY = Path(__file__).parents[2]
BENCHMARKS = REPOSITORY / "benchmarks"
NEEDS = {"attribution_peer": "bergson"}
"""Other packages without which nothing of a script can run."""


def runner() -> ModuleType:
    """scripts/benchmarks.py, which knows what is a script."""
    spec = importlib.util.spec_from_file_location("run_benchmarks", REPOSITORY / "scripts" / "benchmarks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPTS = runner().scripts()


@pytest.fixture(scope="module")
def started() -> Iterator[Forks]:
    with forks("ghosttune.proving.proofs", "ghosttune.workflows.train", "peft") as one:
        yield one


@pytest.mark.slow(seconds=12)
@pytest.mark.parametrize("name", SCRIPTS)
def test_quick(name: str, started: Forks, tmp_path: Path, record_property) -> None:
    if name in NEEDS and not find_spec(NEEDS[name]):
        pytest.skip(f"{name} needs {NEEDS[name]}, which is not installed")
    folder, output = tmp_path / "folder", tmp_path / "output.txt"
    folder.mkdir()
    code = started.run(BENCHMARKS / f"{name}.py", "--quick", folder=folder, output=output)
    said = output.read_text(encoding="utf-8", errors="replace")
    assert code == 0, said[-5000:]
    assert said.strip(), "it prints what it measured"
    assert not list(folder.iterdir()), "--quick leaves nothing behind"
    if left_out := [line for line in said.splitlines() if line.startswith("skipped: ")]:
        record_property("said", "\n".join(left_out))


def test_what_make_benchmarks_runs_is_there() -> None:
    assert {command.partition(".")[0] for command in runner().COMMANDS} <= set(SCRIPTS)


def test_a_failure_is_written_down(tmp_path, monkeypatch, capsys) -> None:
    """`make benchmarks` goes on, says which command failed and why, and fails."""
    module = runner()
    (tmp_path / "good.py").write_text("print('ratio 2.00')")
    (tmp_path / "bad.py").write_text("raise SystemExit('no such thing')")
    (tmp_path / "bare.py").write_text("raise SystemExit('skipped: needs a package')")
    monkeypatch.setattr(module, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks.py", "--quick", "--out", str(tmp_path / "out" / "page.md")])
    assert module.main() == 1
    page = (tmp_path / "out" / "page.md").read_text()
    assert "bad.py --quick`: failed" in page and "no such thing" in page
    assert "bare.py --quick`: skipped" in page and "ratio 2.00" in page and "torch" in page
