"""Tokens per second of `ghosttune serve` with eight clients at once, beside the same requests one after the other.

    python benchmarks/serving.py [--rounds 5] [--requests 1000] [RUN_OR_MODEL]     (serving.md has the numbers)

Rounds of the two kinds take turns, against two servers that run all the time: `--batch 8`, and `--batch 1` as it was.
Prompts and answers have mixed lengths. Then as many requests as asked for go to the first one, whose memory is read
before and after.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quick import launch

CLIENTS = 8
SHORT, LONG = 16, 128
"""Tokens of short and long answers; every fourth is long."""
WORDS = "golden boxes pillows lamps on Saturday for Luke and Anna from the market beside the river".split()  # noqa: SIM905


@dataclass(frozen=True)
class Server:
    port: int
    process: int
    name: str

    def complete(self, prompt: str, tokens: int) -> tuple[str, int, float]:
        """Text, tokens and seconds of one answer."""
        body = json.dumps({"model": self.name, "prompt": prompt, "max_tokens": tokens})
        began = time.perf_counter()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)) as connection:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        return answer["choices"][0]["text"], answer["usage"]["completion_tokens"], time.perf_counter() - began

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def megabytes(self) -> float:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process}/status").read_text())
        return int(found[1]) / 1024 if found else float("nan")


@contextlib.contextmanager
def started(model: str, log: Path, *options: str) -> Iterator[Server]:
    code = "from ghosttune.cli.main import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "serve",
        model,
        "--port",
        "0",
        "--device",
        "cpu",
        "--waiting",
        "64",
        *options,
    ]
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        while not (address := re.search(r"http://[\d.]+:(\d+) ", log.read_text())):
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        yield Server(int(address[1]), process.pid, Path(model).resolve().name if Path(model).exists() else model)
    finally:
        process.terminate()
        process.wait(timeout=60)


def requests(count: int, seed: int, long: int) -> list[tuple[str, int]]:
    """(prompt, longest answer) of mixed lengths."""
    draw = random.Random(seed)
    lengths = [long if number % 4 == 0 else SHORT for number in range(count)]
    return [(" ".join(draw.choices(WORDS, k=draw.randrange(4, 40))), length) for length in lengths]


def measured(server: Server, asked: list[tuple[str, int]], clients: int) -> dict[str, Any]:
    """Tokens per second and per CPU second, the median seconds of short answers, and all texts."""
    began, cpu = time.perf_counter(), server.cpu_seconds
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda one: server.complete(*one), asked))
    seconds, tokens = time.perf_counter() - began, sum(answer[1] for answer in answers)
    short = [answer[2] for answer, (_, length) in zip(answers, asked, strict=True) if length == SHORT]
    return {
        "rate": tokens / seconds,
        "of cpu": tokens / max(server.cpu_seconds - cpu, 0.01),
        "short": statistics.median(short),
        "texts": [answer[0] for answer in answers],
    }


def compare(together: Server, alone: Server, rounds: int, count: int, long: int) -> None:
    """Rounds in turn: eight clients at a server that writes together, and one client, and eight, where it does not."""
    kinds = {"8 clients, together": (together, CLIENTS), "1 client": (alone, 1), "8 clients, alone": (alone, CLIENTS)}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
    for number in range(rounds):
        asked = requests(count, number, long)
        for name, (server, clients) in kinds.items():
            found[name].append(measured(server, asked, clients))
        texts = [found[name][-1]["texts"] for name in kinds]
        differ = sum(one != other for one, other in zip(texts[0], texts[1], strict=True))
        print(f"round {number}: {differ} of {count} answers differ from those one by one", flush=True)
    print(f"{'':22}{'tokens/s':>10}{'/CPU s':>10}{'short answer, s':>18}")
    for name, rows in found.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in ("rate", "of cpu", "short")}
        print(f"{name:22}{middle['rate']:10.0f}{middle['of cpu']:10.0f}{middle['short']:18.2f}")
    for key in ("rate", "of cpu"):
        ratios = [one[key] / other[key] for one, other in zip(*list(found.values())[:2], strict=True)]
        print(f"{key}, together over 1 client: median {statistics.median(ratios):.2f}")


def soak(server: Server, count: int) -> None:
    """Memory over so many requests, read five times."""
    asked = requests(count, 99, 24)
    for part in range(5):
        measured(server, asked[part * count // 5 : (part + 1) * count // 5], CLIENTS)
        print(f"after {(part + 1) * count // 5:5} requests: {server.megabytes:.1f} MB", flush=True)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="builtin:tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=32, help="requests of one round")
    parser.add_argument("--long", type=int, default=LONG, help="tokens of a long answer")
    parser.add_argument("--requests", type=int, default=1000, help="for memory; 0 for none")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        batches = {batch: [given.model, Path(folder) / f"{batch}.log", "--batch", batch] for batch in ("8", "1")}
        together, alone = (stack.enter_context(started(*words)) for words in batches.values())
        compare(together, alone, given.rounds, given.count, given.long)
        if given.requests:
            soak(together, given.requests)


if __name__ == "__main__":
    launch(main, "--rounds 1 --count 8 --long 20 --requests 20")
