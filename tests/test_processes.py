"""No test can hang: what processes.py promises, and that nothing in tests waits without a limit."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from processes import GROUP_TIMEOUT, GroupFailed, limited, run_group

WAITS = {"run", "check_output", "check_call", "call", "communicate", "wait"}


def fail_on_the_second() -> None:
    if dist.get_rank() == 1:
        raise ValueError("this rank has failed")
    dist.barrier()


def wait_for_ever() -> None:
    os.write(1, f"process {os.getpid()}\n".encode())
    time.sleep(1000)


@pytest.mark.usefixtures("two_processes")
def test_a_process_that_fails_ends_its_group() -> None:
    started = time.monotonic()
    with pytest.raises(GroupFailed, match=r"rank 1, exit code 1\n(?s:.*)ValueError: this rank has failed"):
        run_group(fail_on_the_second)
    assert time.monotonic() - started < GROUP_TIMEOUT, "the other one did not wait until its own limit"


@pytest.mark.usefixtures("two_processes")
def test_processes_that_hang_are_ended_and_show_where_they_were() -> None:
    with pytest.raises(GroupFailed, match=r"(?s)Timeout.*most recent call first.*File.*Timeout") as failure:
        run_group(wait_for_ever, limit=12)
    for line in str(failure.value).splitlines():
        if line.startswith("process "):
            with pytest.raises(ProcessLookupError):
                os.kill(int(line.removeprefix("process ")), 0)


def test_reading_from_a_process_that_says_nothing_ends() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(1000)"]
    with limited(subprocess.Popen(command, stdout=subprocess.PIPE), seconds=1) as process:
        assert process.stdout is not None and process.stdout.read() == b""


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_nothing_waits_for_a_process_without_a_limit(path: Path) -> None:
    """`with subprocess.Popen` waits without one too, when it ends."""
    unlimited = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WAITS:
            of_subprocess = node.func.attr in ("communicate", "wait") or ast.unparse(node.func.value) == "subprocess"
            if of_subprocess and not any(keyword.arg == "timeout" for keyword in node.keywords):
                unlimited.append(f"line {node.lineno}: {ast.unparse(node.func)}")
        if isinstance(node, ast.With | ast.AsyncWith):
            opened = [ast.unparse(item.context_expr).partition("(")[0] for item in node.items]
            unlimited += [f"line {node.lineno}: with {name}" for name in opened if name == "subprocess.Popen"]
    assert not unlimited
