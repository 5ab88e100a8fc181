"""Scripts in forks of one process that has its imports: a process of its own for each, and seconds saved by each.

`python tests/forking.py MODULE...` imports these, then runs a script per line of its input, {"script", "arguments",
"folder", "output"}, and answers with a line that holds its exit code.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import limited

SECONDS = 6000.0
"""In which all scripts are done."""


class Forks:
    """A process that runs scripts in forks of itself, one at a time."""

    def __init__(self, server: subprocess.Popen[str]):
        self._server = server

    def run(self, script: Path, *arguments: str, folder: Path, output: Path) -> int:
        """The exit code of the script in this working directory; `output` holds what it wrote."""
        asked = {"script": str(script), "arguments": arguments, "folder": str(folder), "output": str(output)}
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(f"{json.dumps(asked)}\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


@contextmanager
def forks(*modules: str) -> Iterator[Forks]:
    """Of a process with one thread that has imported these modules; the tests' own limit of time ends it, too."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, *modules]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    with limited(server, SECONDS):
        yield Forks(server)


def _run(script: str, arguments: list[str], folder: str, output: str) -> None:
    """Ends the process."""
    code = 1
    try:
        os.chdir(folder)
        with open(output, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = [script, *arguments]
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            sys.stderr.write(end.code)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(**json.loads(line))
        os.write(1, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())


if __name__ == "__main__":
    _serve()
