"""A disk that is full ends a command with a message that advises what the command has; given again, it is done."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ghosttune import train
from ghosttune.cli.main import main
from ghosttune.config.rendering import plain_yaml
from ghosttune.proving.specimens import short_run, write_rows

BYTES = {"index": 100_000, "infer": 2_500, "merge": 100_000, "report": 60_000, "evaluate": 20_000}
"""No file may grow beyond: each command writes one that is larger, and the rows that it reads are not."""


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    config = short_run(
        tiny_model, write_rows(folder / "rows.jsonl"), measure__ledger__guide_every=3, data__guide__rows=4
    )
    return train(config, folder / "run").path


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """A limit on the size of files stands in for a full disk; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def exit_code(*arguments: str | Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["ghosttune", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_training_stops_with_a_message_and_resumes(make_config, tmp_path, monkeypatch, capsys):
    config = tmp_path / "run.yaml"
    settings = {"train__max_steps": 12, "train__save_steps": 4, "train__eval_steps": 12, "method__r": 64}
    config.write_text(plain_yaml(make_config(**settings)))
    with small_disk(40_000):
        code = exit_code("train", config, "--out", tmp_path / "run", monkeypatch=monkeypatch)
    said = capsys.readouterr().err
    assert code == 1, said
    assert "no space left" in said and "Traceback" not in said
    assert f"continue with `ghosttune train --resume --out {tmp_path / 'run'}`" in said
    assert exit_code("train", "--resume", "--out", tmp_path / "run", monkeypatch=monkeypatch) == 0


@pytest.mark.parametrize("command", ["index", "infer", "merge", "report", "evaluate"])
def test_it_is_said_and_the_same_command_goes_on(run, tmp_path, command, monkeypatch, capsys):
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps({"prompt": f"Say {n}"}) + "\n" for n in range(60)))
    arguments = {
        "infer": ["--input", asked, "--output", tmp_path / "said.jsonl", "--max-new-tokens", 2],
        "merge": ["--out", tmp_path / "merged"],
        "evaluate": ["--split", "train", "--limit", 27, "--set", "evaluate.max_new_tokens=200"],
    }
    with small_disk(BYTES[command]):
        code = exit_code(command, run, *arguments.get(command, []), monkeypatch=monkeypatch)
    said = capsys.readouterr().err
    assert code == 1, said
    assert "no space left for" in said and "give the command again" in said
    assert "--resume" not in said and "should not have happened" not in said
    assert exit_code(command, run, *arguments.get(command, []), monkeypatch=monkeypatch) == 0
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".lock"]
