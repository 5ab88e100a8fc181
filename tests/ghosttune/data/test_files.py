"""Files of every kind: the same rows whatever the kind, and faults named with file and line."""

from __future__ import annotations

import gzip
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from ghosttune.config.sections.data import RowsSettings
from ghosttune.data.files import Placed, changed_files, fingerprint, kind_of, read_file
from ghosttune.data.sources import settings_of_file, source_files
from ghosttune.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"prompt": "Was kostet das Café?", "completion": "2 £ 🎉"},
    {"prompt": 'A "quoted", comma', "completion": "two\nlines"},
    {"prompt": "日本語", "completion": "ok"},
]


def jsonl(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def table(rows: list[dict[str, Any]], delimiter: str) -> bytes:
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import io

    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


WRITTEN = {
    "rows.jsonl": jsonl(ROWS),
    "rows.ndjson": jsonl(ROWS),
    "rows.json": json.dumps(ROWS, indent=1).encode(),
    "rows.csv": table(ROWS, ","),
    "rows.tsv": table(ROWS, "\t"),
    "rows.parquet": parquet(ROWS),
}


def read(folder: Path, name: str, content: bytes) -> list[Placed]:
    (folder / name).write_bytes(content)
    return list(read_file(folder / name))


def fault(folder: Path, name: str, content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, name, content)
    assert name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_every_kind_gives_the_same_rows(tmp_path: Path, name: str, zipped: bool) -> None:
    content = gzip.compress(WRITTEN[name]) if zipped else WRITTEN[name]
    assert [fields for _, fields in read(tmp_path, f"{name}.gz" if zipped else name, content)] == ROWS


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.txt"])
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path, name: str) -> None:
    simple = [{"text": "one é"}, {"text": "two"}]
    content = {
        "rows.jsonl": jsonl(simple),
        "rows.json": json.dumps(simple, indent=1).encode(),
        "rows.csv": table(simple, ","),
        "rows.tsv": table(simple, "\t"),
        "rows.txt": "one é\ntwo\n".encode(),
    }[name]
    windows = b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")
    assert read(tmp_path, name, windows) == read(tmp_path, name, content)
    assert [fields for _, fields in read(tmp_path, name, windows)] == simple
    assert read(tmp_path, name, content.rstrip(b"\n")) == read(tmp_path, name, content), "no line end at the end"


def test_empty_lines_are_passed_over_and_counted(tmp_path: Path) -> None:
    assert read(tmp_path, "a.jsonl", b'\n{"text": "x"}\n\n  \n{"text": "y"}\n') == [
        ("a.jsonl:2", {"text": "x"}),
        ("a.jsonl:5", {"text": "y"}),
    ]
    assert [place for place, _ in read(tmp_path, "a.txt", b"one\n\ntwo\n")] == ["a.txt:1", "a.txt:3"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_rows_of_a_table_are_placed_at_their_first_line(tmp_path: Path, end: bytes) -> None:
    content = b'prompt,completion\n"two\nlines",a\n\n"three\n\nlines",b\nc,d\n'.replace(b"\n", end)
    assert read(tmp_path, "a.csv", content) == [
        ("a.csv:2", {"prompt": "two\nlines", "completion": "a"}),
        ("a.csv:5", {"prompt": "three\n\nlines", "completion": "b"}),
        ("a.csv:8", {"prompt": "c", "completion": "d"}),
    ]


def test_rows_of_json_and_parquet_are_placed_by_position(tmp_path: Path) -> None:
    assert [place for place, _ in read(tmp_path, "a.json", WRITTEN["rows.json"])] == [
        "a.json[0]",
        "a.json[1]",
        "a.json[2]",
    ]
    assert read(tmp_path, "a.parquet", WRITTEN["rows.parquet"])[2][0] == "a.parquet[2]"


@pytest.mark.parametrize(
    ("value", "said"),
    [("null", "null"), ("true", "true"), ("1.5", "a number"), ('"x"', "text"), ("[1]", "a list")],
)
def test_a_row_that_is_no_object_is_called_what_json_calls_it(tmp_path: Path, value: str, said: str) -> None:
    assert fault(tmp_path, "a.jsonl", value.encode()).endswith(f"a.jsonl:1: must be an object with columns, is {said}")


def test_all_broken_lines_are_listed(tmp_path: Path) -> None:
    lines = [b'{"text": "a"}', b'{"text": "a"', b'["text"]', b'{"text": "\\ud83d"}', b"nonsense", b'{"text": "z"}']
    message = fault(tmp_path, "a.jsonl", b"\n".join(lines))
    assert "4 of its lines or rows are wrong" in message
    for said in ("a.jsonl:2: not valid JSON", "at column 13", "a.jsonl:3: must be an object with columns, is a list"):
        assert said in message
    assert "a.jsonl:4: holds half a character" in message and "a.jsonl:5: not valid JSON" in message
    assert "a.jsonl:1:" not in message and "a.jsonl:6:" not in message


def test_many_broken_lines_are_counted(tmp_path: Path) -> None:
    message = fault(tmp_path, "a.jsonl", b"{\n" * 25)
    assert message.count("not valid JSON") == 10 and "… and 15 more" in message and "25 of its lines" in message


def test_broken_tables(tmp_path: Path) -> None:
    message = fault(tmp_path, "a.csv", b'prompt,completion\n"a"x,b\nc\nd,e\n1,2,3\n"open,f\ng,h\n')
    assert "a.csv:2: " in message and 'written ""' in message
    assert "a.csv:3: 1 cells where the header has 2" in message
    assert "a.csv:5: 3 cells" in message and "a.csv:6: unexpected end of data" in message
    assert "a.csv:1: column names repeat" in fault(tmp_path, "a.csv", b"a,b,a\n1,2,3\n")
    assert "separate cells with ',', not ';'" in fault(tmp_path, "a.csv", b"prompt;completion\na;b\n")
    assert "separate cells with '\\t', not ','" in fault(tmp_path, "a.tsv", b"prompt,completion\na,b\n")


def test_blanks_around_column_names_do_not_count(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", b"prompt, completion\na, b\n")[0][1] == {"prompt": "a", "completion": " b"}


def test_broken_json(tmp_path: Path) -> None:
    assert "a.json:2: not valid JSON" in fault(tmp_path, "a.json", b'[{"a": 1},\n{]')
    assert "must hold a list of objects, holds an object" in fault(tmp_path, "a.json", b'{"rows": []}')
    assert "a.json[1]: must be an object with columns, is a number" in fault(tmp_path, "a.json", b'[{"a": 1}, 2]')
    assert "name the file .jsonl" in fault(tmp_path, "a.json", b'{"a": 1}\n{"a": 2}\n')


@pytest.mark.parametrize("zipped", [False, True])
def test_lines_that_are_not_utf8_are_found_exactly(tmp_path: Path, zipped: bool) -> None:
    lines = [b'{"text": "fine"}'] * 3000
    lines[17], lines[2500] = b'{"text": "caf\xe9"}', b'{"text": "\xff"}'
    content = b"\n".join(lines)
    name = "a.jsonl.gz" if zipped else "a.jsonl"
    message = fault(tmp_path, name, gzip.compress(content) if zipped else content)
    assert f"{name}:18: byte 0xe9 at byte 14" in message and f"{name}:2501: byte 0xff" in message
    assert "save it as UTF-8" in message


def test_utf16_is_recognised(tmp_path: Path) -> None:
    assert "a.csv:1: the file begins like UTF-16" in fault(tmp_path, "a.csv", "prompt,completion".encode("utf-16"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.parquet.gz"])
def test_damaged_gzip(tmp_path: Path, name: str) -> None:
    whole = gzip.compress(os.urandom(2000).hex().encode() + b"\n")
    assert "cannot be read" in fault(tmp_path, name, whole[:500]) or "parquet" in name
    fault(tmp_path, name, b"not gzip at all")
    fault(tmp_path, name, whole[:200] + bytes(byte ^ 0x5A for byte in whole[200:240]) + whole[240:])


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.jsonl.gz"])
def test_a_file_without_rows(tmp_path: Path, name: str) -> None:
    for content in (b"", b"\n \n\n" if "csv" not in name and "tsv" not in name else b"prompt,completion\n"[:6] + b"\n"):
        stored = gzip.compress(content) if name.endswith("gz") else content
        assert fault(tmp_path, name, stored).endswith("holds no rows")


def test_parquet_faults(tmp_path: Path) -> None:
    assert "a.parquet: not a Parquet file" in fault(tmp_path, "a.parquet", b"")
    assert "a.parquet: not a Parquet file" in fault(tmp_path, "a.parquet", b"PAR1" + b"x" * 50)
    assert fault(tmp_path, "a.parquet", parquet([{"text": "x"}])[:-20])


def with_column(cells: Any) -> bytes:
    import io

    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "m": cells}), buffer)
    return buffer.getvalue()


def test_values_of_parquet_that_python_does_not_have_are_refused_by_column(tmp_path: Path) -> None:
    import pyarrow as pa

    not_utf8 = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(struct.pack("<iii", 0, 1, 2)), pa.py_buffer(b"\xff\xfe")]
    )
    for cells in (
        pa.array([1 << 62, 1], pa.timestamp("us")),
        pa.array([2**31 - 1, 0], pa.int32()).cast(pa.date32()),
        pa.array([1 << 62, 1], pa.duration("s")),
        not_utf8,
        pa.array([float("inf"), 1.0]),
    ):
        assert "a.parquet[0]: the column m cannot be read" in fault(tmp_path, "a.parquet", with_column(cells))


def test_what_is_no_number_in_parquet_is_null(tmp_path: Path) -> None:
    import pyarrow as pa

    cells = pa.array([[float("nan"), 1.0], [2.0]])
    assert [row["m"] for _, row in read(tmp_path, "a.parquet", with_column(cells))] == [[None, 1.0], [2.0]]


def test_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), buffer)
    assert "column names repeat: text, text" in fault(tmp_path, "a.parquet", buffer.getvalue())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("9" * 5000, "a whole number of more than 4,300 digits"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ('{"a": ' * 5000 + "1" + "}" * 5000, "nested too deeply"),
        ("NaN", "NaN is no number"),
        ("-Infinity", "-Infinity is no number"),
        ("1e999", "1e999 is no number"),
        ("-1e" + "9" * 5000, "-1e9999999999999999… is no number"),
        ('{"b": 1, "b": 2}', '"b" stands twice in one object'),
    ],
)
def test_json_that_no_program_could_read_back_is_refused(tmp_path: Path, value: str, said: str) -> None:
    row = f'{{"text": "x", "m": {value}}}'
    assert f"a.jsonl:2: not valid JSON: {said}" in fault(tmp_path, "a.jsonl", f'{{"text": "y"}}\n{row}\n'.encode())
    assert f"a.json: not valid JSON: {said}" in fault(tmp_path, "a.json", f"[{row}]".encode())


def test_as_deep_as_is_accepted_comes_back(tmp_path: Path) -> None:
    value = "[" * 99 + "]" * 99
    [(_, fields)] = read(tmp_path, "a.jsonl", f'{{"text": "x", "m": {value}}}'.encode())
    assert json.dumps(fields["m"]) == value


def test_a_damaged_archive_that_is_not_utf8_either(tmp_path: Path) -> None:
    whole = gzip.compress(b"caf\xe9\n" * 3 + os.urandom(20_000).hex().encode())
    for content in (whole[:-9], whole[:-8] + b"\0" * 8, whole[:5000]):
        message = fault(tmp_path, "a.jsonl.gz", content)
        assert "a.jsonl.gz:1: byte 0xe9" in message and "the archive is damaged here" in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet", "a.jsonl.gz"])
def test_pipes_and_devices_are_refused_without_waiting(tmp_path: Path, name: str) -> None:
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        make(tmp_path / name)
        with pytest.raises(DataError, match="a pipe or a device"):
            read_file(tmp_path / name)
        (tmp_path / name).unlink()


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        source_files(tmp_path / ("x" * 300 + ".jsonl"))
    for name in ("a\nb.jsonl", "\udcff.jsonl", "a\0.jsonl"):
        with pytest.raises(DataError, match="needs a name of UTF-8"):
            settings_of_file(tmp_path / name, RowsSettings())


def test_unknown_kinds_are_refused_with_what_is_readable(tmp_path: Path) -> None:
    message = fault(tmp_path, "a.docx", b"x")
    assert "unknown kind of file" in message and "jsonl, json, csv, tsv, parquet, txt" in message
    assert [kind_of(Path(name)) for name in ("a.JSONL", "a.b.csv.GZ", "a", "a.gz", "a.text")] == [
        "jsonl", "csv", None, None, "txt",
    ]  # fmt: skip


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    assert "Is a directory" in fault_of_folder(tmp_path)


def fault_of_folder(folder: Path) -> str:
    (folder / "a.jsonl").mkdir()
    with pytest.raises(DataError) as caught:
        read_file(folder / "a.jsonl")
    return str(caught.value)


def test_a_very_long_row(tmp_path: Path) -> None:
    long = "word " * 400_000
    assert read(tmp_path, "a.csv", f"text\n{long}\n".encode()) == [("a.csv:2", {"text": long})]


def test_the_fingerprint_is_of_the_bytes_as_stored(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert fingerprint(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_that_was_moved_is_the_same_and_one_whose_bytes_changed_is_not():
    recorded = {"/old/rows.jsonl": "a", "/old/dev.jsonl": "b"}
    assert changed_files(recorded, {"/new/rows.jsonl": "a", "/old/dev.jsonl": "b"}) == []
    assert changed_files(recorded, {"/new/rows.jsonl": "c"}) == ["/new/rows.jsonl"]
    swapped = {"/old/rows.jsonl": "b", "/old/dev.jsonl": "a"}
    assert changed_files(recorded, swapped) == list(swapped), "each has the bytes of the other"
