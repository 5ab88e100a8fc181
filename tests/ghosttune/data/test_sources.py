"""Sources: formats, columns, splits and ids of a user's own files and folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ghosttune.config.sections.data import SourceSettings
from ghosttune.data.records import Record, Turn
from ghosttune.data.sources import Source, builtin_rows, open_source
from ghosttune.errors import DataError

PAIR = {"prompt": "p", "completion": "c"}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def opened(path: Path, **settings: Any) -> Source:
    return open_source(SourceSettings(path=str(path), **settings))


def only(folder: Path, row: dict[str, Any], **settings: Any) -> Record:
    (record,) = opened(write(folder / "rows.jsonl", row), **settings).records
    return record


def fault(path: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(path, **settings)
    return str(caught.value)


def row_fault(folder: Path, *rows: dict[str, Any], **settings: Any) -> str:
    return fault(write(folder / "rows.jsonl", *rows), **settings)


CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "row_format", "turns"),
    [
        (PAIR, "prompt_completion", [("user", "p"), ("assistant", "c")]),
        ({"messages": CHAT}, "messages", [("system", "s"), ("user", "u"), ("assistant", "a")]),
        (
            {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
            "messages",
            [("user", "u"), ("assistant", "a")],
        ),
        ({"instruction": "i", "input": "x", "output": "o"}, "alpaca", [("user", "i\n\nx"), ("assistant", "o")]),
        ({"instruction": "i", "input": "", "output": "o"}, "alpaca", [("user", "i"), ("assistant", "o")]),
        ({"instruction": "i", "input": None, "output": "o"}, "alpaca", [("user", "i"), ("assistant", "o")]),
        ({"instruction": "i", "output": "o"}, "alpaca", [("user", "i"), ("assistant", "o")]),
        ({"text": "plain"}, "text", [("text", "plain")]),
        (
            {"text": "User: hi\nthere\nAssistant: yo\nUser: ok?\nAssistant:  yes "},
            "text",
            [("user", "hi\nthere"), ("assistant", "yo"), ("user", "ok?"), ("assistant", "yes")],
        ),
        (
            {"text": "System: s\r\nUser: u\r\nAssistant: a"},
            "text",
            [("system", "s"), ("user", "u"), ("assistant", "a")],
        ),
        ({"text": "He said:\nUser: hi\nAssistant: yo"}, "text", [("text", "He said:\nUser: hi\nAssistant: yo")]),
        ({"text": "User: alone"}, "text", [("text", "User: alone")]),
    ],
)
def test_formats_are_detected(tmp_path: Path, row: dict, row_format: str, turns: list[tuple[str, str]]) -> None:
    source = opened(write(tmp_path / "rows.jsonl", row))
    assert source.row_format == row_format
    assert source.records[0].turns == tuple(Turn(*turn) for turn in turns)
    assert source.has_turns == (row_format == "messages" or (row_format == "text" and turns[0][0] != "text"))


def test_a_given_format_wins_over_detection(tmp_path: Path) -> None:
    both = {**PAIR, "text": "plain"}
    assert only(tmp_path, both).turns[0].role == "user"
    plain = only(tmp_path, both, format="text")
    assert plain.turns == (Turn("text", "plain"),)
    assert plain.metadata == PAIR


def test_columns_that_fit_nothing_are_shown_beside_what_is_needed(tmp_path: Path) -> None:
    message = row_fault(tmp_path, {"question": "q", "answer": "a"})
    for said in ("columns answer, question", "rows.jsonl:1", "prompt + completion", "messages", "data.train.columns"):
        assert said in message


def test_rows_that_lack_columns_of_the_first_are_listed(tmp_path: Path) -> None:
    message = row_fault(tmp_path, PAIR, {"prompt": "p"}, PAIR, {"Prompt": "p", "completion": "c"})
    assert "the first row is prompt_completion (prompt + completion), 2 others lack columns" in message
    assert "rows.jsonl:2: has prompt" in message and "rows.jsonl:4: has Prompt, completion" in message


def test_columns_can_be_named(tmp_path: Path) -> None:
    row = {"q": "p", "a": "c", "who": "me", "number": 7}
    record = only(tmp_path, row, columns={"prompt": "q", "completion": "a", "example_id": "number"})
    assert record.turns == (Turn("user", "p"), Turn("assistant", "c"))
    assert (record.example_id, record.metadata) == ("7", {"who": "me"})
    swapped = only(tmp_path, PAIR, columns={"prompt": "completion", "completion": "prompt"})
    assert swapped.reference == "p"
    echo = only(
        tmp_path, {"text": "same"}, columns={"prompt": "text", "completion": "text"}, format="prompt_completion"
    )
    assert echo.turns == (Turn("user", "same"), Turn("assistant", "same"))


def test_wrong_column_names_are_refused(tmp_path: Path) -> None:
    message = row_fault(tmp_path, {"q": "p", "a": "c"}, columns={"prompt": "question", "completion": "a"})
    assert "question (for prompt)" in message and "found: a, q" in message
    message = row_fault(tmp_path, {**PAIR, "question": "q"}, columns={"prompt": "question"})
    assert "would hide the column prompt" in message and "{old_prompt: prompt}" in message
    record = only(tmp_path, {**PAIR, "question": "q"}, columns={"prompt": "question", "old_prompt": "prompt"})
    assert record.turns[0].content == "q" and record.metadata == {"old_prompt": "p"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "completion": ""}, "completion is empty"),
        ({"prompt": " \n", "completion": "c"}, "prompt is empty"),
        ({"prompt": "p", "completion": 3}, "completion must be text, is 3"),
        ({"prompt": "p", "completion": None}, "completion must be text, is null"),
        ({"prompt": "p", "completion": ["x" * 500]}, "…"),
        ({"messages": []}, "must be a list of messages, is []"),
        ({"messages": "User: hi"}, "must be a list of messages, is 'User: hi'"),
        ({"messages": ["hi"]}, "message 0 must be an object with role and content, is 'hi'"),
        ({"messages": CHAT[1:2]}, "the last message is the user's; it must be the assistant's answer"),
        ({"messages": [CHAT[1], CHAT[1], CHAT[2]]}, "roles must alternate user, assistant"),
        ({"messages": [CHAT[1], CHAT[0], CHAT[2]]}, "a system message may stand first"),
        ({"messages": [CHAT[0], CHAT[2]]}, "roles must alternate"),
        (
            {"messages": [{"role": "narrator", "content": "x"}, CHAT[2]]},
            "message 0 has role 'narrator'; known are system, user, assistant, tool",
        ),
        ({"messages": [{"role": ["user"], "content": "x"}, CHAT[2]]}, 'has role ["user"]'),
        (
            {"messages": [CHAT[1], {"role": "assistant", "content": " "}]},
            "message 1 (assistant) must have text, has ' '",
        ),
        ({"messages": [CHAT[1], {"role": "assistant"}]}, "must have text, has null"),
        ({"instruction": "i", "input": 4, "output": "o"}, "input must be text, is 4"),
        ({"text": "User: \nAssistant: x"}, "message 0 (user) must have text"),
        ({"text": "User: a\nUser: b\nAssistant: x"}, "roles must alternate"),
        ({"text": "User: a\nAssistant: x\nUser: b"}, "the last message is the user's"),
    ],
)
def test_rows_that_cannot_be_used_say_why(tmp_path: Path, row: dict, said: str) -> None:
    message = row_fault(tmp_path, row)
    assert message.startswith("1 of 1 rows cannot be used:") and "rows.jsonl:1: " in message and said in message
    assert len(message) < 300


def test_all_unusable_rows_are_listed(tmp_path: Path) -> None:
    message = row_fault(tmp_path, *([PAIR, {"prompt": "p", "completion": " "}] * 12))
    assert "12 of 24 rows cannot be used" in message and "rows.jsonl:2: completion is empty" in message
    assert "… and 2 more" in message


def test_other_columns_are_kept_as_metadata(tmp_path: Path) -> None:
    record = only(tmp_path, {**PAIR, "id": 5, "input": "kept", "score": 0.5, "tags": ["a"], "split": "train"})
    assert record.metadata == {"input": "kept", "score": 0.5, "tags": ["a"]}
    assert (record.example_id, record.split, record.place) == ("5", "train", "rows.jsonl:1")


def test_ids_are_the_rows_own_else_derived(tmp_path: Path) -> None:
    rows = [{**PAIR, "example_id": "own"}, {**PAIR, "id": 7}, PAIR, {**PAIR, "id": " "}, {**PAIR, "example_id": None}]
    ids = [record.example_id for record in opened(write(tmp_path / "my.rows.jsonl", *rows)).records]
    assert ids[:2] == ["own", "7"]
    assert [example_id[:10] for example_id in ids[2:]] == ["my-000002-", "my-000003-", "my-000004-"]
    again = [record.example_id for record in opened(tmp_path / "my.rows.jsonl").records]
    assert again == ids
    assert len(set(ids)) == 5


def test_derived_ids_change_with_the_content_and_not_with_the_settings(tmp_path: Path) -> None:
    row = {"q": "p", "completion": "c"}
    first = only(tmp_path, row, columns={"prompt": "q"}).example_id
    assert only(tmp_path, row, columns={"text": "q"}).example_id == first
    assert only(tmp_path, {**row, "completion": "d"}, columns={"prompt": "q"}).example_id != first


def test_derived_ids_are_the_same_in_another_process(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {**PAIR, "z": {"b": 1, "a": [2]}}, PAIR)
    code = (
        "import sys; from ghosttune.data.sources import open_source as read\n"
        "from ghosttune.config.sections.data import SourceSettings\n"
        "print(*[record.example_id for record in read(SourceSettings(path=sys.argv[1])).records])"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "123"}
    command = [sys.executable, "-c", code, str(path)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout
    assert said.split() == [record.example_id for record in opened(path).records]


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    message = row_fault(tmp_path, {**PAIR, "id": 1}, {**PAIR, "id": "1"}, {**PAIR, "id": 2})
    assert "1 ids stand on more than one row: 1." in message and "remove the column" in message


def test_a_split_column_names_the_splits(tmp_path: Path) -> None:
    words = ["train", "validation", "Test", "guide", "val"]
    rows = [{**PAIR, "split": word} for word in words]
    source = opened(write(tmp_path / "rows.jsonl", *rows))
    assert [record.split for record in source.records] == ["train", "dev", "test", "guide", "dev"]
    assert source.splits == ("train", "dev", "test", "guide")
    assert only(tmp_path, {**PAIR, "part": "dev"}, columns={"split": "part"}).split == "dev"
    assert opened(write(tmp_path / "none.jsonl", {**PAIR, "split": None}, {**PAIR, "split": ""})).splits == ()
    assert only(tmp_path, {**PAIR, "split": None}).split is None


def test_other_words_in_the_split_column_are_refused(tmp_path: Path) -> None:
    rows = [{**PAIR, "split": "train"}, {**PAIR, "split": "holdout"}, {**PAIR, "split": None}, PAIR]
    message = row_fault(tmp_path, *rows)
    for said in (
        "rows.jsonl:2: split is 'holdout'",
        "rows.jsonl:3: split is null",
        "rows.jsonl:4: ",
        "{other_name: split}",
    ):
        assert said in message
    assert "rows.jsonl:1:" not in message
    record = only(tmp_path, {**PAIR, "split": "holdout"}, columns={"half": "split"})
    assert (record.split, record.metadata) == (None, {"half": "holdout"})


def test_a_folder_holds_one_file_per_split(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write(folder / "train.jsonl", PAIR, {**PAIR, "completion": "d"})
    (folder / "validation.csv").write_text("prompt,completion\nq,a\n")
    write(folder / "README.jsonl", {"anything": 1})
    (folder / "notes.md").write_text("x")
    source = opened(folder)
    assert [(record.split, record.reference) for record in source.records] == [
        ("train", "c"),
        ("train", "d"),
        ("dev", "a"),
    ]
    assert [Path(name).name for name in source.fingerprints] == ["train.jsonl", "validation.csv"]
    assert source.records[0].example_id.startswith("train-train-000000-")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    assert "holds no train file (train.jsonl, train.csv, …); it holds nothing" in fault(folder)
    write(folder / "dev.jsonl", PAIR)
    assert "it holds dev.jsonl" in fault(folder)
    write(folder / "train.jsonl", {**PAIR, "split": "dev"})
    assert "train.jsonl:1: split is 'dev'" in fault(folder)
    write(folder / "val.jsonl", PAIR)
    assert "holds two files for dev: dev.jsonl and val.jsonl" in fault(folder)


def test_a_missing_file_names_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", PAIR)
    (tmp_path / "picture.png").write_bytes(b"")
    message = fault(tmp_path / "trian.jsonl")
    assert "trian.jsonl does not exist; did you mean train.jsonl?" in message
    assert f"{tmp_path} holds train.jsonl" in message and "picture" not in message
    assert "did you mean" not in fault(tmp_path / "other.jsonl"), "the ending alone is no likeness"
    assert "did you mean train.jsonl?" in fault(tmp_path / "train.json")
    assert "nor does the folder" in fault(tmp_path / "no" / "where.jsonl")


@pytest.mark.parametrize("count", [1, 3])
def test_few_rows(tmp_path: Path, count: int) -> None:
    rows = [{"prompt": f"p{number} 🎉", "completion": "ü"} for number in range(count)]
    assert len(opened(write(tmp_path / "rows.jsonl", *rows)).records) == count


def test_equal_prompts_share_a_group(tmp_path: Path) -> None:
    rows = [("What IS\nit?", "a"), ("what  is it?", "b"), ("What is it", "c")]
    path = write(
        tmp_path / "rows.jsonl", *({"prompt": prompt, "completion": completion} for prompt, completion in rows)
    )
    groups = [record.group for record in opened(path).records]
    assert groups[0] == groups[1] != groups[2]


def test_the_shipped_rows_can_be_read() -> None:
    if not builtin_rows().is_file():
        pytest.skip("the built-in rows are not made yet")
    source = open_source(SourceSettings(path="builtin:rows"))
    assert len(source.records) >= 100
    assert len({record.example_id for record in source.records}) == len(source.records)
