"""What a configuration file may look like, and what is said about one that cannot be read."""

from __future__ import annotations

import json

import pytest

from ghosttune.config.loading import load_config
from ghosttune.config.notation import parse_value, to_yaml
from ghosttune.errors import ConfigError, InputError

ROWS = {"data": {"train": {"path": "builtin:rows"}}}


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        load_config(path)
    return str(caught.value)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", ".0001", "0.000_1", "+1e-4", "0.0001"])
def test_numbers_may_be_written_as_people_write_them(write, text):
    config = load_config(write(f"data: {{train: {{path: builtin:rows}}}}\ntrain: {{learning_rate: {text}}}"))
    assert config.train.learning_rate == 0.0001


@pytest.mark.parametrize("text", ["1:30", "2026-01-01", "no", "on", "017", "0x10", "1e", "e5", "<<", "2026-13-45"])
def test_words_that_yaml_1_1_turns_into_something_else_stay_text(write, text):
    config = load_config(write(f"data: {{train: {{path: builtin:rows}}}}\nrun: {{name: {text}}}"))
    assert config.run.name == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-3", -3),
        ("10_000", 10000),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        (".5", 0.5),
        ("5.", 5.0),
        ("[a, 1]", ["a", 1]),
        ("{a: 1}", {"a": 1}),
        ("'12'", "12"),
        ("a #1.jsonl", "a #1.jsonl"),
        (" spaced ", "spaced"),
    ],
)
def test_values_of_set(text, value):
    parsed = parse_value(text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize("text", ["1e-4", "no", "017", "1_0", "null", "", "- a", "a: b", "'", "...", "\u2028", "#"])
def test_text_that_looks_like_something_else_is_written_so_that_it_reads_back(text):
    assert parse_value(to_yaml(text).strip("\n")) == text


def test_a_repeated_key_is_named_with_both_lines(problems):
    assert problems("train:\n  seed: 1\n  max_steps: 20\n  seed: 2") == [
        "train.seed: is given twice (first in line 3); keep one [run.yaml:5]"
    ]


def test_a_repeated_section_is_named_beside_other_problems(problems):
    found = problems("train: {max_steps: 0}\nrun: {root: a}\nrun: {root: b}")
    assert found[0].startswith("run: is given twice (first in line 3)")
    assert found[1].startswith("train.max_steps: must be at least 1")


def test_broken_yaml_is_reported_with_its_line(write):
    message = refusal(write("train:\n  seed: 1\n  max_steps: [1\nrun: {}\n"))
    assert "run.yaml:4: not valid YAML" in message


@pytest.mark.parametrize(
    "text", ["train: !!int x", "train: !unknown 5", "train: *nothing", "a: b: c", "train:\n\tseed: 1"]
)
def test_yaml_that_cannot_be_built_is_refused_without_a_traceback(write, text):
    assert "not valid YAML" in refusal(write(text))


def test_an_alias_of_itself_is_refused(write):
    assert "alias that contains itself" in refusal(write("train: &a {seed: *a}"))


def test_anchors_may_be_used(write):
    config = load_config(write("data: {train: {path: &p builtin:rows}, dev: {path: *p}}"))
    assert config.data.dev.path == "builtin:rows"


def test_broken_json_is_reported_with_its_line(write):
    message = refusal(write('{\n  "train": {"seed": 1,\n}', "run.json"))
    assert "run.json:3: not valid JSON" in message


def test_problems_in_json_have_lines_and_repeated_keys_are_found(write):
    with pytest.raises(ConfigError) as caught:
        load_config(write('{\n\t"train": {\n\t\t"seed": 1,\n\t\t"seed": 2,\n\t\t"max_stepz": 3}}', "run.json"))
    places = {(problem.setting, problem.origin) for problem in caught.value.problems}
    assert {("train.seed", "run.json:4"), ("train.max_stepz", "run.json:5")} <= places


def test_json_text_is_what_json_says(write):
    name = "caf\u00e9 \U0001f600 \\ / \u2028"
    config = load_config(write(json.dumps(ROWS | {"run": {"root": "/" + name}}), "run.json"))
    assert config.run.root == "/" + name


def test_a_missing_file_names_the_nearest(write):
    write("x: 1", "run.yaml")
    message = refusal(write("", "other.txt").parent / "rum.yaml")
    assert (
        "does not exist" in message and "did you mean run.yaml?" in message and "ghosttune init > rum.yaml" in message
    )


def test_a_file_below_a_missing_folder(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nowhere" / "run.yaml")


def test_a_folder_is_no_configuration(tmp_path):
    assert "is a folder" in refusal(tmp_path)


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes("train:\n  seed: 1\nrun: {name: café}\n".encode("latin-1"))
    assert "run.yaml:3: not UTF-8" in refusal(path) and "save the file as UTF-8" in refusal(path)


def test_utf16_from_a_windows_shell_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes("train: {}".encode("utf-16"))
    assert "not UTF-8" in refusal(path)


def test_a_byte_order_mark_is_no_problem(tmp_path):
    for name, text in (("run.yaml", to_yaml(ROWS)), ("run.json", json.dumps(ROWS))):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert load_config(tmp_path / name).data.train.path == "builtin:rows"


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n"])
def test_an_empty_file_says_how_to_get_a_full_one(write, text):
    assert "ghosttune init" in refusal(write(text))


@pytest.mark.parametrize(
    ("text", "kind"), [("- train\n- run", "a list"), ("just text", "a single value"), ("5", "a single value")]
)
def test_a_file_without_sections_is_refused(write, text, kind):
    assert f"run.yaml:1: must hold sections (model, data, train, …), holds {kind}" in refusal(write(text))


def test_two_documents_in_a_file_are_refused(write):
    assert "not valid YAML" in refusal(write("train: {seed: 1}\n---\ntrain: {seed: 2}"))
