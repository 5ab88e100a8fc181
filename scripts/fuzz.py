"""Coverage-guided fuzzing of what strangers can hand to ghosttune.

    pip install 'ghosttune[fuzz]'
    python scripts/fuzz.py TARGET [--seconds 600] [--seed 0] [--out FOLDER]

TARGET is config, rows, phases or requests (`fuzz_targets.py`). Mutation starts from the inputs in
tests/ghosttune/fuzzing/inputs/TARGET, which `make test` replays. What fails is written to FOLDER once per place that it
fails at, and the mutation goes on; the last line counts the inputs, the slowest and the findings. Exit code 1: some.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

import atheris  # type: ignore[import-not-found]  # extra `fuzz`

REPOSITORY = Path(__file__).resolve().parent.parent
INPUTS = REPOSITORY / "tests" / "ghosttune" / "fuzzing" / "inputs"
LONGEST = 4096
"""Bytes of an input."""

INSTRUMENTED = ["ghosttune.config", "ghosttune.data", "ghosttune.schedules", "ghosttune.inference.protocol", "yaml"]

with atheris.instrument_imports(include=INSTRUMENTED):
    import fuzz_targets


class Findings:
    """What failed, once per place, and how many inputs there were."""

    def __init__(self, target: str, out: Path, seconds: float):
        self.target, self.out = target, out
        self.started, self.seconds = time.monotonic(), seconds
        self.out.mkdir(parents=True, exist_ok=True)
        self.inputs, self.slowest, self.places = 0, 0.0, dict[str, str]()
        self.scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))

    def try_one(self, data: bytes) -> None:
        """Gives the input to the target, and keeps it where it fails or takes too long; ends the process in time."""
        self.inputs += 1
        started = time.monotonic()
        try:
            fuzz_targets.TARGETS[self.target](data, self.scratch)
        except Exception as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "ghosttune" in frame.filename]
            place = f"{type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"
            self.keep(place, data, "".join(traceback.format_exception(error)[-12:]))
        took = time.monotonic() - started
        self.slowest = max(self.slowest, took)
        if took > fuzz_targets.SECONDS:
            self.keep(f"over {fuzz_targets.SECONDS:g} s", data, f"took {took:.1f} s\n")
        if time.monotonic() - self.started > self.seconds:
            print(self.summary(), flush=True)
            os._exit(1 if self.places else 0)  # libFuzzer knows no other end than a crash

    def keep(self, place: str, data: bytes, said: str) -> None:
        """Writes the first input of each place."""
        if place in self.places:
            return
        self.places[place] = name = hashlib.sha256(data).hexdigest()[:12]
        (self.out / name).write_bytes(data)
        print(f"FINDING {place}: {self.out / name}\n{said}", flush=True)

    def summary(self) -> str:
        """The last line."""
        return (
            f"{self.target}: {self.inputs:,} inputs in {self.seconds:g} s, slowest {self.slowest:.2f} s, "
            f"{len(self.places)} findings: {', '.join(self.places) or 'none'}"
        )


def main() -> None:
    """Fuzzes one target for so many seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=fuzz_targets.TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("findings"))
    chosen = parser.parse_args()
    found = Findings(chosen.target, chosen.out / chosen.target, chosen.seconds)
    corpus = tempfile.mkdtemp(prefix="corpus-")
    options = [f"-seed={chosen.seed + 1}", f"-max_len={LONGEST}", "-timeout=30", "-rss_limit_mb=4096", "-verbosity=0"]
    options += [f"-dict={INPUTS / chosen.target}.words", f"-artifact_prefix={found.out}/"]  # seed 0 would mean any
    atheris.Setup([sys.argv[0], *options, corpus, str(INPUTS / chosen.target)], found.try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
