"""Every input that a fuzzer found, those it starts from, and damaged ones: answered in our own words and at once.

`scripts/fuzz.py` looks for more.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "inputs"
SCRIPTS = Path(__file__).parents[3] / "scripts"
INPUTS = sorted(path for path in HERE.glob("*/*") if path.is_file())
MUTATED = 60
"""Of each target: inputs with bytes changed, cut, doubled and mixed."""


@pytest.fixture(scope="module")
def targets() -> Iterator[dict[str, Callable[[bytes, Path], None]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        import fuzz_targets

        yield fuzz_targets.TARGETS
    sys.modules.pop("fuzz_targets", None)


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_input_is_answered_or_refused_in_our_words(targets, path, tmp_path):
    started = time.monotonic()
    targets[path.parent.name](path.read_bytes(), tmp_path)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["config", "rows", "phases", "requests"])
def test_inputs_that_were_damaged_are_answered_too(targets, name, tmp_path):
    draw = random.Random(7)
    known = [path.read_bytes() for path in INPUTS if path.parent.name == name]
    words = [line[1:-1].encode() for line in (HERE / f"{name}.words").read_text().split("\n") if line]
    for _ in range(MUTATED):
        data = bytearray(draw.choice(known)[:2000])
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(data) + 1)
            other = draw.choice(known)[:2000]
            piece = draw.choice([draw.choice(words), draw.randbytes(2), bytes(data[:place]), other[len(other) // 2 :]])
            data[place : place + draw.choice([0, 0, 1, 5, 50])] = piece
        targets[name](bytes(data[:4096]), tmp_path)


def test_what_is_not_refused_in_our_words_is_noticed(targets, tmp_path, monkeypatch):
    fuzz_targets = sys.modules["fuzz_targets"]
    monkeypatch.setattr(fuzz_targets, "load_config", lambda *given, **how: {}["traceback"])
    with pytest.raises(KeyError):
        targets["config"](b"Ytrain: {}", tmp_path)
