"""What runs before each commit passes on the tree, and fetches nothing."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parent.parent.parent
FOLDERS = ("src", "tests", "scripts", "benchmarks", "examples")
(LOCAL,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]


def test_hooks_are_of_the_checkout():
    assert LOCAL["repo"] == "local"
    assert [hook["id"] for hook in LOCAL["hooks"]] == ["format", "lint", "layers"]
    assert {hook["language"] for hook in LOCAL["hooks"]} == {"system"}
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for hook in LOCAL["hooks"]:
        assert hook["entry"].split()[-1] in makefile, "make check runs it too"


@pytest.mark.parametrize("hook", LOCAL["hooks"], ids=lambda hook: hook["id"])
def test_a_hook_passes_on_the_tree(hook):
    command = shlex.split(hook["entry"].replace(".venv/bin/", f"{Path(sys.executable).parent}/"))
    if hook["id"] == "format":
        command += ["--check"]  # a test leaves the tree as it is
    if hook.get("pass_filenames", True):
        command += FOLDERS
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
