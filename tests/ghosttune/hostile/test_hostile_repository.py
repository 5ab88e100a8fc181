"""A repository whose own configuration names programs: asking for its commit runs none of them."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from ghosttune.run.git import git_state

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A committed file under a filter, in the working directory."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    git("init", "-q")
    (folder / "rows.txt").write_text("one\n")
    (folder / ".gitattributes").write_text("*.txt filter=own\n")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")
    return folder


def git(*arguments):
    subprocess.run(["git", *arguments], check=True, capture_output=True, timeout=300)


def program(path, marker):
    path.write_text(f'#!/bin/sh\ntouch "{marker}"\ncat\n')
    path.chmod(0o755)
    return str(path)


def test_no_monitor_hook_or_filter_of_a_repository_runs(repository, tmp_path):
    ran = tmp_path / "ran"
    ran.mkdir()
    hook = program(tmp_path / "program.sh", ran / "monitor")
    git("config", "core.fsmonitor", hook)
    for name in ("clean", "process"):
        git("config", f"filter.own.{name}", program(tmp_path / f"{name}.sh", ran / name))
    git("config", "filter.own.required", "true")
    hooks = repository / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    program(hooks / "post-index-change", ran / "hook")
    (repository / "rows.txt").write_text("two\n")  # of the same size: git has to read it
    os.utime(repository / "rows.txt", (1, 1))
    state = git_state()
    assert not list(ran.iterdir())
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["changed"]
    subprocess.run(["git", "status"], capture_output=True, timeout=300)
    assert list(ran.iterdir()), "these programs would never have run"


def test_a_clean_repository_is_not_changed_and_a_plain_folder_has_no_commit(repository, tmp_path, monkeypatch):
    state = git_state()
    assert state is not None
    assert not state["changed"]
    (repository / "new.txt").write_text("")
    assert (git_state() or {})["changed"]
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path / "plain")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert git_state() is None
