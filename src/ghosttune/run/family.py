"""Processes that belong together: a child ends with its parent, and Ctrl-C and SIGTERM end a piece of work in order.

A child is killed when its parent is gone, however that ended: it could not tell anybody any more what it does, and what
it has written is safe. It hears of it by the end of its standard input, of which the parent alone holds the other end,
and on Linux by the kernel too, which needs no thread of the child's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO

Stream = int | IO[bytes] | None

CHILD = "GHOSTTUNE_CHILD"
"""Environment variable that tells a process that its standard input ends with its parent."""

OTHERS_GONE = 3
"""Exit code of one of several processes that has nothing to say but that another is gone; only its parent sees it."""

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that the kernel sends when the parent is gone."""


def start_child(
    command: Sequence[str], environment: Mapping[str, str], stdout: Stream = None, stderr: Stream = None
) -> subprocess.Popen[bytes]:
    """Starts a `ghosttune` process that does not outlive this one; `stdout` and `stderr` as Popen takes them."""
    known = {**environment, CHILD: "1"}
    return subprocess.Popen(command, env=known, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr)


def let_go(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a child that has ended; closes the pipe by which it knew that its parent lives."""
    code = process.wait()
    if process.stdin is not None:
        process.stdin.close()
    return code


def end_with_parent() -> None:
    """In a process that `start_child` started: is killed from now on when its parent is gone. Elsewhere nothing."""
    if os.environ.pop(CHILD, None) is None:
        return
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with_input, name="parent", daemon=True).start()


def _end_with_input() -> None:
    while os.read(0, 1):  # nobody writes: it returns when the other end is closed
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def other_is_gone(error: Exception) -> bool:
    """Whether this is one of several processes, and the error says only that another has ended."""
    said = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return "RANK" in os.environ and isinstance(error, RuntimeError) and any(text in str(error) for text in said)


@contextmanager
def handling(numbers: Sequence[int], handler: Callable[[int], None]) -> Iterator[None]:
    """Inside, these signals call `handler` with their number.

    Only in the main thread, where alone Python takes signals: work in another thread leaves them to who started it.
    """
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                stack.callback(signal.signal, number, signal.signal(number, lambda number, frame: handler(number)))
        yield


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt, as Ctrl-C does.

    It does so once: a machine that is shut down tells every process of a family, and so does their parent, and what the
    first interruption has begun to tidy up is not to be interrupted by the second.
    """
    begun = False

    def interrupt(number: int) -> None:
        nonlocal begun
        if not begun or number == signal.SIGINT:
            begun = True
            raise KeyboardInterrupt

    with handling((signal.SIGINT, signal.SIGTERM), interrupt):
        yield
