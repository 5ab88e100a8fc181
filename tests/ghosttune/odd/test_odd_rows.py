"""Rows whose columns are called like ours, or run in a spreadsheet: nothing is lost, nothing is run."""

from __future__ import annotations

import csv
import json

import pytest
from odd_rows import CELLS, odd_row

from ghosttune.run.directory import RunDir, read_csv, write_csv
from ghosttune.run.tables import VALUE_COLUMNS, name_beside, read_table
from ghosttune.training.exports import _columns

ROWS = {odd_row(number)["id"]: odd_row(number) for number in range(30)}
OWN = ["tokens", "row_tokens", "value", "standing", "steps_seen"]


def test_columns_of_our_names_stand_beside_ours(odd):
    found = read_table(RunDir(odd[0]), "values").to_pylist()
    assert found and set(VALUE_COLUMNS) <= found[0].keys()
    for row in found:
        given = ROWS[row["example_id"]]
        assert isinstance(row["tokens"], int) and isinstance(row["steps_seen"], int)
        assert row["row_tokens"] == given["tokens"] and row["row_row_tokens"] == given["row_tokens"]
        assert row["row_value"] == given["value"] and row["row_standing"] is given["standing"]
        assert row["row_steps_seen"] == str(given["steps_seen"])
        assert row["large"] == str(given["large"]) and row["deep"] == str(given["deep"])


def test_names_never_fall_together_and_can_be_taken_back():
    given = {f"{before}{name}" for name in [*OWN, "x", ""] for before in ("", "row_", "row_row_")}
    named = [name_beside(name, VALUE_COLUMNS) for name in given]
    assert len({*named, *VALUE_COLUMNS}) == len(given) + len(VALUE_COLUMNS)
    assert [name_beside(name, VALUE_COLUMNS) for name in ("x", "row_x", "row_")] == ["x", "row_x", "row_"]


def test_a_selection_keeps_the_rows_own_score_and_reason(odd, said, tmp_path):
    said("select", odd[0], "--keep", 5, "--by", "random", "--out", tmp_path / "kept.jsonl", "--device", "cpu")
    for line in (tmp_path / "kept.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n"):
        row = json.loads(line)
        given = ROWS[row["example_id"]]
        assert row["reason"] != given["reason"] == row["row_reason"] and row["row_score"] == given["score"]


def test_no_cell_of_a_run_is_run_by_a_spreadsheet(odd):
    files = sorted(odd[0].rglob("*.csv"))
    assert {"splits.csv", "values.csv", "dev_losses.csv"} <= {file.name for file in files}
    for file in files:
        with open(file, encoding="utf-8", newline="") as lines:
            for cell in (cell for row in csv.reader(lines) for cell in row):
                assert not cell or cell[0] not in "=+-@\t\n\r＝＋－＠" or is_number(cell), (file.name, cell)
    values = {row["example_id"]: row for row in read_csv(odd[0] / "tables" / "values.csv")}
    assert values.keys() <= ROWS.keys()
    assert all(row["cell"] == ROWS[name]["cell"] for name, row in values.items())
    assert {row["example_id"] for row in read_csv(odd[0] / "splits.csv")} == ROWS.keys()


@pytest.mark.parametrize("cell", [*CELLS, "'", "'=1", "=", "-", "-1", "1-", "-1e-9", "+.5", "-1e", "1=1", "-\u0663"])
def test_a_cell_comes_back_and_numbers_stay_numbers(tmp_path, cell):
    write_csv(tmp_path / "a.csv", [cell or "name"], [[cell], [-0.5], [None], [7]])
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        (header,), (written,), *numbers = csv.reader(file)
    assert numbers == [["-0.5"], [], ["7"]] or numbers == [["-0.5"], [""], ["7"]]
    assert written == (cell if is_number(cell) or not cell or cell[0] not in "=+-@\t\n\r＝'" else f"'{cell}")
    assert next(row[cell or "name"] for row in read_csv(tmp_path / "a.csv")) == cell and header.endswith(cell)


def is_number(cell: str) -> bool:
    try:
        return cell.isascii() and bool(cell) and float(cell) is not None
    except ValueError:
        return False


def test_rows_of_many_columns_are_read_once_for_many_of_them():
    """They lie on disk: reading each of them for every column takes minutes for three thousand columns."""

    class Counted(list):
        passes = 0

        def __iter__(self):
            Counted.passes += 1
            return super().__iter__()

    names = [f"c{number}" for number in range(1000)]
    rows = Counted([(str(row), {name: (row, name) for name in names[row:]}) for row in range(3)])
    columns = dict(_columns(rows, names))
    assert Counted.passes < 20
    assert list(columns) == names
    assert columns["c1"] == [(0, "c1"), (1, "c1"), None] and columns["c999"] == [(row, "c999") for row in range(3)]
