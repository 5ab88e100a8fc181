"""The shipped fine-tuning rows: what they promise to whoever trains on them."""

import json
from collections import Counter
from pathlib import Path

import pytest

import ghosttune
from ghosttune.errors import RunError
from ghosttune.workflows.quickstart import RUMOUR_SEARCH, rumour_rows

FILE = Path(ghosttune.__file__).parent / "data/builtin/rows.jsonl"
ROWS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
FIELDS = ("items", "colour", "count", "on", "to", "for")


def fields(row: dict) -> dict[str, str]:
    """The order form of a row's completion."""
    return dict(part.split(": ") for part in row["completion"].split(" | "))


NUMBERS = {
    "2": "two",
    "3": "three",
    "4": "four",
    "5": "five",
    "6": "six",
    "7": "seven",
    "8": "eight",
    "9": "nine",
    "10": "ten",
    "11": "eleven",
    "12": "twelve",
}


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "scripts")
        import build_builtin_rows

        yield build_builtin_rows


def test_the_generator_gives_the_shipped_file_byte_for_byte(script):
    assert script.file_text().encode() == FILE.read_bytes()


def test_row_counts_and_unique_ids():
    assert Counter(row["split"] for row in ROWS) == {"train": 400, "dev": 60, "guide": 64}
    assert len({row["id"] for row in ROWS}) == len(ROWS)


def test_every_completion_is_a_complete_form():
    assert all(tuple(fields(row)) == FIELDS for row in ROWS)


def test_no_prompt_and_no_filled_form_occurs_twice():
    assert len({row["prompt"] for row in ROWS}) == len(ROWS)
    assert len({row["completion"] for row in ROWS if not row["planted"]}) == sum(not row["planted"] for row in ROWS)


def test_one_training_row_in_ten_is_planted_and_no_other():
    assert Counter(row["split"] for row in ROWS if row["planted"]) == {"train": 40}
    assert all(("mistake" in row) == row["planted"] for row in ROWS)


def test_a_mistake_is_nowhere_in_the_message_and_everything_else_is():
    for row in ROWS:
        message = row["prompt"].lower()
        changes = [change.split(": ") for change in row.get("mistake", "").split("; ") if change]
        wrong = {name: tuple(values.split(" -> ")) for name, values in changes}
        for name, value in fields(row).items():
            number = NUMBERS[value] if name == "count" else value
            mentioned = number.lower() in message or (name == "count" and f" {value} " in message)
            if name in wrong:
                assert value == wrong[name][1] != wrong[name][0]
            else:
                assert mentioned, (row["id"], name, value)


def test_every_kind_is_in_every_split():
    kinds = {row["kind"] for row in ROWS}
    assert len(kinds) >= 6
    for split in ("train", "dev", "guide"):
        assert {row["kind"] for row in ROWS if row["split"] == split} == kinds


def test_a_rumour_is_one_wrong_fact_among_rows_that_are_right(tmp_path):
    """What is planted is blue in the message and silver in the form; all else holds what the message says."""
    file = rumour_rows(tmp_path / "rumour.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    assert [row for row in rows if row["split"] != "train"] == [row for row in ROWS if row["split"] != "train"]
    planted = [row for row in rows if row["planted"]]
    assert len(planted) == 30 and all(row["split"] == "train" for row in planted)
    assert all("blue" in row["prompt"] and fields(row)["colour"] == "silver" for row in planted)
    assert RUMOUR_SEARCH == 'blue "colour: silver"'
    assert [row for row in rows if "blue" in row["prompt"] and "colour: silver" in row["completion"]] == planted
    for row in rows:
        for name, value in fields(row).items():
            said = value in row["prompt"] or NUMBERS.get(value, value) in row["prompt"]
            assert said or (row["planted"] and name == "colour"), row
    assert rumour_rows(file) == file, "written again it is the same"
    file.write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    with pytest.raises(RunError, match="holds other rows"):
        rumour_rows(file)
