"""Rows on disk: they come back as they were, a run with them is the run it would be, and memory does not grow."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghosttune.config.loading import load_config
from ghosttune.data.encoding import Features
from ghosttune.data.records import Record, Records, Turn
from ghosttune.data.stored import Each, Stored, key_of
from ghosttune.errors import DataError
from ghosttune.stages.prepare import Prepared, prepare

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(JSON, max_size=6), st.slices(6))
def test_items_come_back_as_they_were(items: list[Any], some: slice) -> None:
    stored = Stored(iter(items))
    assert len(stored) == len(items) and list(stored) == items and stored[some] == items[some]
    assert [repr(stored[place]) for place in range(-len(items), len(items))] == [repr(item) for item in items * 2]
    with pytest.raises(IndexError):
        stored[len(items)]


def test_arrays_keep_their_kind_and_belong_to_who_asked() -> None:
    row = Features(7, "café", np.arange(5, dtype="<u2"), np.array([False, True, True, False, True]))
    stored = Stored([row, row])
    first, again = stored[0], stored[np.int64(0)]
    first.input_ids[:] = 0
    assert again.input_ids.dtype == row.input_ids.dtype and again.input_ids.tolist() == [0, 1, 2, 3, 4]
    assert again.trained.tolist() == row.trained.tolist() and (again.index, again.example_id) == (7, "café")


def test_each_makes_only_what_is_asked_for() -> None:
    made: list[int] = []

    def double(number: int) -> int:
        made.append(number)
        return 2 * number

    doubled = Each(range(10), double)
    assert len(doubled) == 10 and list(doubled[4:6]) == [8, 10] and doubled[-1] == 18 and made == [4, 5, 9]


def test_a_choice_of_records_keeps_their_order_and_keys() -> None:
    groups, splits = "abcab", [None, "dev", "train", "test", None]
    kept = [Record(str(at), (Turn("user", "q"),), groups[at], splits[at]) for at in range(5)]
    records = Records.of(iter(kept))
    assert list(records) == kept and records[1:3] == kept[1:3]
    assert list(records.of_split(None, "train")) == [kept[0], kept[2], kept[4]]
    assert list(records.where(np.array([3, 1])).where(np.array([False, True]))) == [kept[1]]
    assert [key == key_of("a") for key in records.groups] == [group == "a" for group in groups]


def test_nothing_is_left_in_the_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stored = Stored(["a" * 100_000] * 10)
    assert stored[9] == "a" * 100_000 and not list(tmp_path.iterdir())


def test_a_full_disk_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "w+b"))
    with pytest.raises(DataError, match=r"do not fit into the folder for temporary files.*No space left.*TMPDIR"):
        Stored(["a" * 100_000] * 10)


class InMemory(list):
    """What `Stored` was before: every item in memory."""


CASES = {
    "turns": ["data.guide.fraction=0.1", "data.train.limit=300"],
    "guide rows": ["data.guide.rows=40", "data.dev.limit=20"],
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_has_the_rows_it_would_have_in_memory(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same records, splits, order, tokens and fingerprints."""
    config = load_config(overrides=["data.train.path=builtin:rows", "model.device=cpu", *CASES[case]])
    on_disk = seen(prepare(config))
    homes = [m for name, m in sys.modules.items() if name.startswith("ghosttune.") and hasattr(m, "Stored")]
    assert len(homes) > 5
    for module in homes:
        monkeypatch.setattr(module, "Stored", InMemory)
    in_memory = prepare(config)
    assert isinstance(in_memory.train.features, InMemory) and isinstance(in_memory.train_records.stored, InMemory)
    assert seen(in_memory) == on_disk


def seen(prepared: Prepared) -> list[Any]:
    """All that a run is given, as text and numbers."""
    one = prepared
    records = (one.train_records, one.dev_records, one.guide_records, one.dev_pool, one.test_records)
    features = [
        {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(row).items()}
        for split in (one.train, one.dev, one.guide)
        for row in split.features
    ]
    return [[list(part) for part in records], features, one.fingerprints, one.left_out, one.config.model_dump()]


MEASURED = """
import json, sys
sys.path.insert(0, sys.argv[1])
from memory import measured
from pathlib import Path
print(json.dumps(measured(Path(sys.argv[2]), json.loads(sys.argv[3]))))
"""


@pytest.mark.slow(seconds=30)
def test_memory_stays_flat(tmp_path: Path) -> None:
    """A file 15 MB larger: in memory its rows took 105 MB more.

    Most of what a run still takes more is allocators getting warm; benchmarks/memory.md has the figures of large files.
    """
    benchmarks = Path(__file__).parents[3] / "benchmarks"
    sys.path.insert(0, str(benchmarks))
    try:
        from memory import SETTINGS, written  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(benchmarks))
    found = []
    for megabytes in (2, 17):
        path = tmp_path / f"{megabytes}.jsonl"
        written(path, megabytes)
        command = [sys.executable, "-c", MEASURED, str(benchmarks), str(path), json.dumps(SETTINGS)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1500)
        found.append(json.loads(ran.stdout.splitlines()[-1]))
    small, large = found
    assert large["rows"] > 3.9 * small["rows"]
    assert large["prepared_mb"] - small["prepared_mb"] < 25 and large["trained_mb"] - small["trained_mb"] < 45, found
