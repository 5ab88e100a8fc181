"""Patches of rows: what each change does to what trains, that judges stay, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ghosttune.config.loading import load_config
from ghosttune.data.patching import read_patch
from ghosttune.errors import DataError
from ghosttune.stages.prepare import Prepared, prepare

ROWS = [{"id": f"row {n}", "prompt": f"What is {n}?", "completion": f"It is {n}.", "kind": "own"} for n in range(40)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def prepared(tmp_path):
    """Prepares a run on ROWS with these changes; None for a run without a patch."""
    write(tmp_path / "rows.jsonl", ROWS)

    def prepare_with(changes: list[dict[str, Any]] | None, *overrides: str) -> Prepared:
        patch = [] if changes is None else [f"data.train.patch={write(tmp_path / 'rows.patch.jsonl', changes)}"]
        own = [f"data.train.path={tmp_path / 'rows.jsonl'}", "model.name=builtin:tiny", "model.device=cpu"]
        return prepare(load_config(overrides=[*own, "data.guide.rows=4", *patch, *overrides]))

    return prepare_with


def ids(records: Any) -> list[str]:
    return [record.example_id for record in records]


def test_each_change_does_what_it_says_and_the_judges_stay(prepared):
    before = prepared(None)
    first, second, third, fourth = ids(before.train_records)[:4]
    after = prepared(
        [
            {"example_id": first, "drop": True, "note": "wrong"},
            {"example_id": second, "edit": {"completion": "Something else."}},
            {"example_id": third, "weight": 3},
            {"example_id": fourth, "flag": "look at it"},
            {"example_id": "new", "add": {"prompt": "Who?", "completion": "Nobody."}},
            {"example_id": "new guide", "add": {"prompt": "Where?", "completion": "Here."}, "split": "guide"},
        ]
    )
    assert ids(after.train_records) == [*ids(before.train_records)[1:], "new"]
    assert ids(after.dev_records) == ids(before.dev_records)
    assert ids(after.guide_records) == [*ids(before.guide_records), "new guide"]
    edited = after.train_records[0]
    assert (edited.example_id, edited.reference) == (second, "Something else.")
    assert edited.prompt == before.train_records[1].prompt and edited.metadata == {"kind": "own"}
    drawn = Counter(after.train.features[place].example_id for place in after.order())
    assert drawn == Counter(ids(after.train_records)) + Counter({third: 2})
    assert after.patched == {
        **{"dropped": 1, "edited": 1, "weighted": 1, "flagged": 1, "added": 1, "added_to_guide": 1, "elsewhere": 0}
    }
    assert after.left_out["dropped by data.train.patch"] == 1


def test_an_edit_may_be_the_whole_row(prepared):
    first = ids(prepared(None).train_records)[0]
    messages = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]
    for edit in ({"messages": messages}, {"prompt": "A?", "completion": "B."}):
        row = prepared([{"example_id": first, "edit": edit}]).train_records[0]
        assert [turn.content for turn in row.turns] == ["A?", "B."] and row.example_id == first


def test_labels_are_edited_alone(tmp_path):
    rows = [{"id": f"r{n}", "text": f"text {n}", "label": "good" if n % 2 else "bad"} for n in range(20)]
    path, patch = write(tmp_path / "rows.jsonl", rows), tmp_path / "patch.jsonl"
    own = ["task.type=sequence_classification", f"data.train.path={path}", "model.name=builtin:tiny"]
    base = [*own, "model.device=cpu", "measure.ledger=null", "data.template=auto"]
    row = prepare(load_config(overrides=base)).train_records[0]
    other = "bad" if row.columns["label"] == "good" else "good"
    write(patch, [{"example_id": row.example_id, "edit": {"label": other}}])
    found = prepare(load_config(overrides=[*base, f"data.train.patch={patch}"])).train_records[0]
    assert found.columns == {"text": row.columns["text"], "label": other}


def test_rows_that_judge_are_counted_and_not_changed(prepared):
    before = prepared(None)
    changed = [{"example_id": ids(before.dev_records)[0], "edit": {"completion": "No."}}]
    after = prepared(changed)
    assert after.patched["elsewhere"] == 1 and after.patched["edited"] == 0
    assert [row.reference for row in after.dev_records] == [row.reference for row in before.dev_records]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"example_id": "nobody", "drop": True}, "the data has no row 'nobody'"),
        ({"example_id": "row 1", "add": {"prompt": "a", "completion": "b"}}, "the data has a row 'row 1'"),
        ({"example_id": "new", "add": {"question": "a"}}, "fit no format"),
        ({"example_id": "row 1"}, "says of no change"),
        ({"drop": True}, "example_id must be the id of a row, is null"),
        ({"example_id": "row 1", "drop": "yes"}, "drop must be true or false, is 'yes'"),
        ({"example_id": "row 1", "weight": 0.5}, "weight must be a whole number from 1 to 1000"),
        ({"example_id": "row 1", "weight": True}, "weight must be a whole number"),
        ({"example_id": "row 1", "drop": True, "weight": 2}, "drops the row, and has weight beside that"),
        ({"example_id": "row 1", "edit": [1]}, "edit must be an object"),
        ({"example_id": "row 1", "split": "guide", "flag": "x"}, "split is for rows that are added"),
        (
            {"example_id": "n", "add": {"prompt": "a", "completion": "b"}, "split": "dev"},
            "split must be train or guide",
        ),
        ({"example_id": "row 1", "delete": True}, "holds delete; a line of a patch has example_id, drop"),
    ],
)
def test_a_line_that_is_no_change_is_refused_by_its_place(prepared, line, said):
    with pytest.raises(DataError, match=r"rows\.patch\.jsonl:2") as refused:
        prepared([{"example_id": "row 2", "flag": "fine"}, line])
    assert said in str(refused.value)


def test_all_faults_are_named_together(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"example_id": "a", "drop": True}] * 2 + [{"example_id": "b", "drop": 3}])
    with pytest.raises(DataError, match=r"a stands in several lines") as refused:
        read_patch(path)
    assert "p.jsonl:3: drop must be" in str(refused.value)


def test_rows_may_not_ask_what_judges_ask(prepared):
    dev = prepared(None).dev_records[0]
    asked = {"prompt": dev.prompt[0].content, "completion": "learnt by heart"}
    with pytest.raises(DataError, match="ask the same as a dev row"):
        prepared([{"example_id": "new", "add": asked}])


def test_some_rows_must_stay(prepared):
    with pytest.raises(DataError, match="drops all"):
        prepared([{"example_id": name, "drop": True} for name in ids(prepared(None).train_records)])


def test_weights_and_sources_are_one_or_the_other(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    patch = write(tmp_path / "p.jsonl", [{"example_id": "own/row 1", "weight": 2}])
    overrides = [f"data.train.sources={{own: {{path: {path}}}}}", "model.device=cpu", "model.name=builtin:tiny"]
    with pytest.raises(DataError, match=r"weight cannot be beside data\.train\.sources"):
        prepare(load_config(overrides=[*overrides, f"data.train.patch={patch}"]))
