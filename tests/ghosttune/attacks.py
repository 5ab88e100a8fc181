"""What a stranger may send a server for seconds on end, while somebody else asks for its health all the time.

`python tests/ghosttune/attacks.py` starts `ghosttune serve builtin:tiny`, tries every attack and 3,000 broken bodies,
and prints what the health took meanwhile; `--port` takes a server that runs already.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from broken_bodies import mutated

MODEL = "builtin:tiny"
HOST = "127.0.0.1"
CROWD = 400
"""Connections of an attack that opens many: more than a server holds."""


def post(port: int, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, bytes]:
    """Status and body of the answer."""
    connection = HTTPConnection(HOST, port, timeout=300)
    with contextlib.closing(connection):
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()


def asking(content: Any, **fields: Any) -> bytes:
    return json.dumps({"model": MODEL, "messages": content, "max_tokens": 4, **fields}).encode()


def turns(count: int) -> bytes:
    return asking([{"role": ("user", "assistant")[n % 2], "content": "a"} for n in range(count)])


def head(length: int, **headers: str) -> bytes:
    lines = {"Host": HOST, "Content-Type": "application/json", "Content-Length": str(length), **headers}
    return b"POST /v1/chat/completions HTTP/1.1\r\n" + b"".join(f"{k}: {v}\r\n".encode() for k, v in lines.items())


def opened(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=10)


def reset(connection: socket.socket) -> None:
    """Closes it without a farewell."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


Again = Callable[[], bool]
"""Whether there is time left."""


def bodies(*all_: bytes, **headers: str) -> Callable[[int, Again], None]:
    """The attack of posting these over and over, from four clients at once."""

    def attack(port: int, again: Again) -> None:
        def client() -> None:
            while again():
                for body in all_:
                    with contextlib.suppress(OSError):
                        post(port, body, **headers)

        crowd = [threading.Thread(target=client) for _ in range(4)]
        for one in crowd:
            one.start()
        for one in crowd:
            one.join(90)

    return attack


def crowd(*first: bytes, drip: bytes = b"", reads: bool = True) -> Callable[[int, Again], None]:
    """The attack of many connections that begin so and go on slowly, new ones in place of those that are closed."""

    def attack(port: int, again: Again) -> None:
        with contextlib.ExitStack() as stack:
            held: list[socket.socket] = []
            while again():
                with contextlib.suppress(OSError):
                    one = stack.enter_context(opened(port))
                    if not reads:
                        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    one.setblocking(False)
                    held.append(one)
                    one.send(b"".join(first))
                for one in held[-CROWD::7]:
                    with contextlib.suppress(OSError):
                        one.send(drip)
                if len(held) >= CROWD:
                    held.pop(0).close()
                time.sleep(0.002)

    return attack


def storm(body: bytes, share: float = 1.0) -> Callable[[int, Again], None]:
    """The attack of asking and leaving at once, after this share of the body."""

    def attack(port: int, again: Again) -> None:
        number = 0
        while again():
            number += 1
            with contextlib.suppress(OSError):
                connection = opened(port)
                connection.sendall(head(len(body)) + b"\r\n" + body[: int(len(body) * share)])
                reset(connection) if number % 2 else connection.close()
            time.sleep(0.001)

    return attack


QUESTION = [{"role": "user", "content": "Hello"}]
BIG = 250_000


def nothing(port: int, again: Again) -> None:
    """What the machine itself makes of it."""
    while again():
        time.sleep(0.01)


ATTACKS: dict[str, Callable[[int, Again], None]] = {
    "nothing": nothing,
    "3,001 messages": bodies(turns(3001)),
    "255 messages": bodies(turns(255)),
    "one long word": bodies(asking([{"role": "user", "content": "x" * BIG}])),
    "many words, four of them at once": bodies(asking([{"role": "user", "content": "a b\n" * (BIG // 5)}])),
    "120,000 wrong values": bodies(asking([1] * 80_000), asking([{"role": "user", "content": [1] * 80_000}])),
    "deep JSON": bodies(b'{"model":' + b"[" * BIG, b'{"a":' * 900 + b"1" + b"}" * 900),
    "half heads": crowd(b"POST /v1/chat/comp", drip=b"x"),
    "half bodies": crowd(head(1000), b"\r\n{", drip=b" "),
    "chunks after a refusal": crowd(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n",
                                    b"Transfer-Encoding: chunked\r\n\r\n", drip=b"1\r\na\r\n"),
    "garbage after a refusal": crowd(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n",
                                     b"Transfer-Encoding: chunked\r\n\r\n", drip=b"zz\r\n"),
    "garbage": crowd(b"\x16\x03\x01\x02\x00\x01\x00", drip=b"\x00\xff"),
    "pages that nobody reads": crowd(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500, reads=False),
    "asking and leaving": storm(asking(QUESTION, max_tokens=200)),
    "asking for a stream and leaving": storm(asking(QUESTION, max_tokens=200, stream=True)),
    "leaving half-way": storm(asking([{"role": "user", "content": "x" * 20_000}]), 0.5),
    "asking much and leaving": storm(asking([{"role": "user", "content": "x" * BIG}])),
    "other hosts": bodies(asking(QUESTION), Host="attacker.example"),
    "other pages": bodies(asking(QUESTION), Origin="http://attacker.example"),
}  # fmt: skip


@dataclass(frozen=True)
class Health:
    """What each question after the server's health took; infinite where it was not answered by 200."""

    seconds: list[float]
    own: list[float]
    """Without the time in which the server or the one who asked had work to do and no processor (Linux only)."""

    def __str__(self) -> str:
        middle, longest, own = (1000 * s for s in (statistics.median(self.seconds), max(self.seconds), max(self.own)))
        return f"{len(self.own):4} asked, median {middle:6.1f} ms, longest {longest:6.1f} ms, of its own {own:5.1f} ms"


@dataclass(frozen=True)
class Attacked:
    """A server, and the process that it is."""

    port: int
    process: int


@contextlib.contextmanager
def watched(server: Attacked) -> Iterator[list[Health]]:
    """Asks in a process of its own, so that the attackers' threads do not count; the list has one entry at the end."""
    found: list[Health] = []
    command = [sys.executable, __file__, "--watch", "--port", str(server.port), "--process", str(server.process)]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert watcher.stdout is not None
        watcher.stdout.readline()
        yield found
        found.append(Health(**json.loads(watcher.communicate(timeout=450)[0])))
    finally:
        watcher.kill()
        watcher.wait(timeout=150)


def starved(*processes: int) -> float:
    """Seconds for which threads of these processes have waited for a processor so far."""
    waited = 0
    for process in processes:
        for thread in Path(f"/proc/{process}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # ended meanwhile
                waited += int(thread.read_text().split()[1])
    return waited / 1e9


def watch(server: Attacked) -> None:
    """Asks until the input ends, then writes what each question took."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    health = Health([], [])
    print("ready", flush=True)  # noqa: T201
    while not ended.wait(timeout=0.05):
        began, before = time.perf_counter(), starved(server.process, os.getpid())
        try:
            with contextlib.closing(HTTPConnection(HOST, server.port, timeout=300)) as connection:
                connection.request("GET", "/health")
                answer = connection.getresponse()
                is_well = answer.status == 200 and bool(answer.read())
        except OSError:
            is_well = False
        took = time.perf_counter() - began if is_well else float("inf")
        health.seconds.append(took)
        health.own.append(max(0.0, took - (starved(server.process, os.getpid()) - before)))
    print(json.dumps(vars(health)))  # noqa: T201


def attacked(server: Attacked, attack: Callable[[int, Again], None], seconds: float) -> Health:
    """The server's health while it is attacked for so long."""
    with watched(server) as found:
        end = time.monotonic() + seconds
        attack(server.port, lambda: time.monotonic() < end)
        time.sleep(0.3)
    return found[0]


def fuzzed(server: Attacked, seed: int, count: int) -> tuple[Health, dict[int, int], list[bytes]]:
    """Health while so many broken bodies are sent, how often each status was answered, and the bodies with 5xx."""
    draw, statuses, broke = random.Random(seed), {}, []
    with watched(server) as found:
        for number in range(count):
            body = mutated(draw, MODEL)
            status = post(server.port, body, ("/v1/chat/completions", "/v1/completions")[number % 2])[0]
            statuses[status] = statuses.get(status, 0) + 1
            if status >= 500:
                broke.append(body)
    return found[0], statuses, broke


@contextlib.contextmanager
def started(log: Path, *options: str) -> Iterator[Attacked]:
    """A `ghosttune serve` of its own, whose output goes to `log`."""
    code = "from ghosttune.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", MODEL, "--port", "0", "--device", "cpu", *options]
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 90
        while not (address := re.search(r"http://[\d.]+:(\d+) ", log.read_text())):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield Attacked(int(address[1]), process.pid)
        assert process.poll() in (None, -signal.SIGTERM), log.read_text()
    finally:
        process.terminate()
        try:
            process.wait(timeout=150)
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int)
    parser.add_argument("--process", type=int, default=0, help="of the server at --port")
    parser.add_argument("--watch", action="store_true", help="only ask for the health until the input ends")
    parser.add_argument("--only", help="the attacks whose names have this in them")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bodies", type=int, default=3000)
    given = parser.parse_args()
    if given.watch:
        watch(Attacked(given.port, given.process))
        return
    log = Path("attacked.log")
    running = Attacked(given.port, given.process)
    with contextlib.nullcontext(running) if given.port else started(log) as server:
        for name, attack in ATTACKS.items():
            if (given.only or "") in name:
                print(f"{name:34} {attacked(server, attack, given.seconds)}", flush=True)  # noqa: T201
                while post(server.port, asking(QUESTION))[0] != 200:
                    time.sleep(0.2)
        if given.bodies:
            health, statuses, broke = fuzzed(server, given.seed, given.bodies)
            print(f"{given.bodies} broken bodies, seed {given.seed}: {health}; {statuses}")  # noqa: T201
            for body in broke[:10]:
                print(body[:500])  # noqa: T201
    if not given.port:
        print("tracebacks in its log:", log.read_text().count("Traceback"))  # noqa: T201


if __name__ == "__main__":
    main()
