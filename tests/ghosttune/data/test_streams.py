"""Streamed rows: those of the files, with the ids they have when their file is read whole, in an order of the seed."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ghosttune.config.sections.data import SourceSettings
from ghosttune.data import streaming
from ghosttune.data.records import Record
from ghosttune.data.sources import open_source
from ghosttune.data.streaming import Cursor, Windows, open_stream, shard_files
from ghosttune.errors import DataError, TooFewRows

KINDS = ("jsonl", "jsonl.gz", "csv", "parquet")


def write_shard(path: Path, rows: list[dict[str, Any]]) -> None:
    """A file of the kind that its name says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        return pq.write_table(pa.Table.from_pylist(rows), path)
    if path.suffix == ".csv":
        text = "\n".join(",".join(map(str, cells)) for cells in [list(rows[0]), *(row.values() for row in rows)])
    else:
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four shards of unequal length, each of another kind of file."""
    for shard, kind in enumerate(KINDS):
        rows = [{"q": f"Où est {shard}-{n}?", "a": f"là {n}", "kind": n % 2} for n in range(5 + 3 * shard)]
        write_shard(tmp_path / f"part-{shard}.{kind}", rows)
    return tmp_path


def settings(shards: Path, **given: Any) -> SourceSettings:
    columns = {"prompt": "q", "completion": "a"}
    given = {"path": f"{shards}/part-*", "shuffle_buffer": 7, "columns": columns} | given
    return SourceSettings(streaming=True, **given)


def windows_of(settings: SourceSettings, seed: int = 0) -> Windows:
    found = open_stream(settings, seed).stream
    assert found is not None
    return found


def windows(stream: Windows, start: Cursor | None = None) -> Iterator[tuple[Cursor, list[Record], Cursor]]:
    """(where it begins, its records, where the next one begins) of every window from there on, without end."""
    cursor = start or Cursor()
    while True:
        records, after = stream.window(cursor)
        yield cursor, list(records), after
        cursor = after


def passed(stream: Windows, number: int) -> list[list[Record]]:
    """The windows of one pass."""
    found = []
    for cursor, records, _ in windows(stream, Cursor(number)):
        if cursor.passes != number:
            return found
        found.append(records)
    return found


def test_a_pass_holds_every_row_once_as_its_file_alone_has_it(shards: Path) -> None:
    own = settings(shards)
    alone = [
        record
        for path in shard_files(str(own.path))
        for record in open_source(SourceSettings(path=str(path), columns=own.columns)).records
    ]
    for number in (0, 1):
        streamed = [record for window in passed(windows_of(own), number) for record in window]
        assert sorted(streamed, key=lambda record: record.example_id) == sorted(
            alone, key=lambda record: record.example_id
        )
    assert {record.example_id.rpartition("-")[0] for record in alone} >= {"part-0-000000", "part-3-000013"}


def test_windows_are_the_next_rows_of_shards_in_drawn_order_shuffled(shards: Path) -> None:
    """Written out: shards by a permutation, rows of them in turn, cut into windows, each permuted."""
    own, seed = settings(shards), 3
    for number in (0, 1, 2):
        order = np.random.default_rng([seed, streaming.crc32(b"shards"), number]).permutation(4)
        rows = [f"Où est {shard}-{n}?" for shard in order.tolist() for n in range(5 + 3 * shard)]
        expected = []
        for window, first in enumerate(range(0, len(rows), 7)):
            cut = rows[first : first + 7]
            random = np.random.default_rng([seed, streaming.crc32(f"window {window}".encode()), number])
            expected.append([cut[place] for place in random.permutation(len(cut))])
        found = [[record.prompt[0].content for record in window] for window in passed(windows_of(own, seed), number)]
        assert found == expected
    assert passed(windows_of(own, 3), 0) != passed(windows_of(own, 4), 0) != passed(windows_of(own, 4), 1)


def test_every_window_can_be_made_again_from_where_it_begins(shards: Path) -> None:
    made = [next_ for _, next_ in zip(range(17), windows(windows_of(settings(shards))), strict=False)]
    for start, records, after in made:
        cursor = Cursor(**json.loads(json.dumps(asdict(start))))
        assert windows_of(settings(shards)).window(cursor)[1] == after
        assert list(windows_of(settings(shards)).window(cursor)[0]) == records
    assert [start.passes for start, _, _ in made][-1] == 2


def test_going_on_reads_no_shard_before_it_and_the_own_one_from_its_start(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = windows_of(settings(shards))
    cursor = next(cursor for cursor, _, _ in windows(stream) if cursor.shard == 2)
    opened, real = [], streaming.each_row
    monkeypatch.setattr(streaming, "each_row", lambda path: opened.append(path) or real(path))
    again = stream.window(cursor)[0]
    assert len(again) == 7
    paths = shard_files(str(settings(shards).path))
    order = streaming._drawn(4, 0, "shards", 0)
    assert opened in ([paths[order[2]]], [paths[order[2]], paths[order[3]]])


def test_windows_that_follow_each_other_open_each_shard_once(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = windows_of(settings(shards, shuffle_buffer=2))
    opened, real = [], streaming.each_row
    monkeypatch.setattr(streaming, "each_row", lambda path: opened.append(path) or real(path))
    assert len(passed(stream, 0)) == 19
    assert len(set(opened)) == 4 and len(opened) <= 6  # the first one again, since it had been read for the format


@pytest.mark.parametrize("size", [1, 7, 38, 1000])
def test_any_size_of_window_gives_the_rows(shards: Path, size: int) -> None:
    found = passed(windows_of(settings(shards, shuffle_buffer=size)), 0)
    assert sum(map(len, found)) == 38 and all(len(window) == size for window in found[:-1])


def test_own_ids_are_kept_and_two_of_one_window_refused(tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "prompt": f"p {n}", "completion": "c"} for n in range(4)]
    write_shard(tmp_path / "part-0.jsonl", rows)
    (window,) = passed(windows_of(SourceSettings(path=f"{tmp_path}/part-*", streaming=True)), 0)
    assert {record.example_id for record in window} == {"r0", "r1", "r2", "r3"}
    write_shard(tmp_path / "part-1.jsonl", rows[:1])
    with pytest.raises(DataError, match="1 ids stand on more than one row: r0"):
        open_stream(SourceSettings(path=f"{tmp_path}/part-*", streaming=True), 0)


def test_a_bad_line_is_named_when_its_window_is_read(tmp_path: Path) -> None:
    good = [{"prompt": f"p {n}", "completion": "c"} for n in range(6)]
    write_shard(tmp_path / "rows.jsonl", good)
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write('\n{"prompt": \n')
    stream = windows_of(SourceSettings(path=f"{tmp_path}/rows.jsonl", streaming=True, shuffle_buffer=4))
    with pytest.raises(DataError, match=r"rows\.jsonl cannot be read further:\n  rows\.jsonl:7: not valid JSON"):
        list(zip(range(3), windows(stream), strict=False))


def test_a_row_that_lacks_a_column_later_on_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {n}", "completion": "c"} for n in range(4)] + [{"prompt": "lonely"}]
    write_shard(tmp_path / "rows.jsonl", rows)
    stream = windows_of(SourceSettings(path=f"{tmp_path}/rows.jsonl", streaming=True, shuffle_buffer=4))
    with pytest.raises(DataError, match=r"rows\.jsonl:5: has no column 'completion'"):
        list(zip(range(2), windows(stream), strict=False))


def test_rows_of_another_split_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {n}", "completion": "c", "split": "dev" if n == 2 else "train"} for n in range(4)]
    write_shard(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"trains on all of its rows, and 1 name another split: rows\.jsonl:3; keep"):
        open_stream(SourceSettings(path=f"{tmp_path}/rows.jsonl", streaming=True), 0)


@pytest.mark.parametrize(
    ("files", "pattern", "said"),
    [
        ([], "none-*.jsonl", "matches no file"),
        (["a.json"], "a.json", r"matches a\.json, which cannot be read row by row"),
        (["a.jsonl", "notes.md"], "*", r"matches notes\.md, which cannot be read row by row"),
        (["a.jsonl", "a.csv"], "a.*", "matches several files called a, and ids begin with that name"),
        (["a.jsonl"], "", r"is a folder; say which of its files are streamed, such as .*/\*\.jsonl"),
    ],
)
def test_what_is_no_stream_is_refused_by_name(tmp_path: Path, files: list[str], pattern: str, said: str) -> None:
    for name in files:
        (tmp_path / name).write_text('{"prompt": "p", "completion": "c"}\n')
    with pytest.raises(DataError, match=said):
        shard_files(str(tmp_path / pattern))


def test_shards_without_rows_do_not_go_round_for_ever(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("\n")
    with pytest.raises(TooFewRows, match="the stream holds no rows"):
        open_stream(SourceSettings(path=f"{tmp_path}/*.jsonl", streaming=True), 0)


def test_what_changes_about_the_shards_changes_the_fingerprint(shards: Path) -> None:
    def known() -> dict[str, str]:
        return open_stream(settings(shards), 0).fingerprints

    first = known()
    assert known() == first
    write_shard(shards / "part-4.jsonl", [{"q": "more", "a": "b", "kind": 0}])
    more = known()
    assert not set(more) & set(first)
    write_shard(shards / "part-4.jsonl", [{"q": "nore", "a": "b", "kind": 0}])
    assert known().keys() == more.keys() and known() != more


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """A hub that holds one dataset of four Parquet files, streamed by the real library; returns their rows."""
    import datasets

    files = [[{"q": f"{shard}-{n}", "a": "Ici", "kind": n} for n in range(6 + shard)] for shard in range(4)]
    for shard, rows in enumerate(files):
        write_shard(tmp_path / f"part-{shard}.parquet", rows)
    paths = {"train": [str(tmp_path / f"part-{shard}.parquet") for shard in range(4)]}
    (load, build), cache = (datasets.load_dataset, datasets.load_dataset_builder), str(tmp_path / "cache")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: load("parquet", data_files=paths, cache_dir=cache))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: build("parquet", data_files=paths))
    return files


def test_a_hub_id_streams_the_rows_and_ids_that_it_has_whole(hub: list[list[dict[str, Any]]]) -> None:
    own: dict[str, Any] = {"name": "org/name", "columns": {"prompt": "q", "completion": "a"}}
    whole = list(open_source(SourceSettings(**own)).records)
    stream = windows_of(SourceSettings(**own, streaming=True, shuffle_buffer=4))
    for number in (0, 1):
        streamed = [record for window in passed(stream, number) for record in window]
        assert sorted(streamed, key=lambda record: record.example_id) == whole
    made = [next_ for _, next_ in zip(range(12), windows(stream), strict=False)]
    assert made[3][0].shard > 0
    for start, records, _ in made:
        again = windows_of(SourceSettings(**own, streaming=True, shuffle_buffer=4))
        assert list(again.window(start)[0]) == records


def test_a_hub_id_that_cannot_be_streamed_says_what_to_do() -> None:
    with pytest.raises(DataError, match="cannot be had from the hub"):
        open_stream(SourceSettings(name="no-such-organisation/dataset", streaming=True), 0)


@pytest.mark.slow(seconds=150)
def test_a_hundred_times_the_rows_take_no_more_memory(tmp_path: Path) -> None:
    """Read, checked and tokenised by the process that would train; 300,000 rows against 3,000."""
    write_shard(tmp_path / "dev.jsonl", [{"prompt": f"dev {n}", "completion": "c"} for n in range(5)])
    found = {}
    for rows in (3_000, 300_000):
        with open(tmp_path / f"rows-{rows}.jsonl", "w") as file:
            for n in range(rows):
                file.write(json.dumps({"prompt": f"Say number {n}", "completion": f"{n % 97}."}) + "\n")
        command = [sys.executable, str(Path(__file__).parents[1] / "streamed_memory.py"), str(file.name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
        assert done.returncode == 0, done.stderr
        found[rows] = json.loads(done.stdout.splitlines()[-1])
        assert found[rows]["rows"] == rows
    assert found[300_000]["peak_mb"] - found[3_000]["peak_mb"] < 20, found
