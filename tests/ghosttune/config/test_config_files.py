"""What a configuration file may look like, and what is said about one that cannot be read."""

from __future__ import annotations

import itertools
import json
import os
import time

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
    assert "an alias stands inside of what it repeats" in refusal(write("train: &a {seed: *a}"))


def levels(first: str, line: str, count: int = 9) -> str:
    """Lines that each repeat the one before nine times."""
    names = "abcdefghij"[: count + 1]
    return f"a: &a {first}\n" + "".join(
        line.format(new=new, old=f"*{old}") + "\n" for old, new in itertools.pairwise(names)
    )


BOMBS = {
    "lists": levels("[x, x]", "{new}: &{new} [{old}, {old}, {old}, {old}, {old}, {old}, {old}, {old}, {old}]"),
    "mappings": levels(
        "{x: 1}",
        "{new}: &{new} {{a: {old}, b: {old}, c: {old}, d: {old}, e: {old}, f: {old}, g: {old}, h: {old}, i: {old}}}",
    ),
    "merges": levels("{x: 1}", "{new}: &{new} {{<<: [{old}, {old}, {old}, {old}, {old}, {old}, {old}, {old}, {old}]}}"),
    "values": "train: [" + "a, " * 50_000 + "]",
    "names": "train:\n" + "".join(f"  a{number}: 1\n" for number in range(20_000)),
    "characters": "# " + "x" * 1_000_000 + "\n",
    "levels": "train: " + "[" * 3000 + "]" * 3000,
    "levels by aliases": "a: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 60)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_unfolds_into_millions_of_values_is_refused_at_once(write, name, slowness):
    started = time.process_time()
    said = refusal(write(BOMBS[name]))
    assert "more than" in said or "too many" in said or "cannot be read: it has more than" in said
    assert time.process_time() - started < 2 * slowness  # 0.05 to 0.6 s on an idle core; the mappings took over 40 s


def test_as_many_values_as_are_accepted_are_judged_in_seconds(write, slowness):
    started = time.process_time()
    said = refusal(write("train:\n" + "".join(f"  a{number}: 1\n" for number in range(4_900))))
    assert said.startswith("4901 problems") or ("4900 problems" in said and "… and 4,80" in said)
    assert time.process_time() - started < 4 * slowness


@pytest.mark.parametrize("value", ["9" * 5000, "-" + "9" * 5000, "!!int foo", "!!bool foo", "!!float foo"])
def test_a_number_that_is_none_is_named_with_its_line(write, value):
    said = refusal(write(f"train:\n  max_steps: {value}"))
    assert "run.yaml:2: not valid YAML: a value is no " in said
    assert ("has 5,00" in said and "4,300" in said) == ("999" in value) and "sys." not in said


@pytest.mark.parametrize("tag", ["!!timestamp foo", "!!timestamp 2020-99-99", "!!set {a, b}", "!!binary a", "!x y"])
def test_other_tags_are_refused_by_name(write, tag):
    assert f"run.yaml:1: not valid YAML: the tag {tag.split()[0]} means nothing here" in refusal(write(f"train: {tag}"))


def test_a_control_character_is_named_with_its_line(write):
    assert "run.yaml:2: not valid YAML: the control character #x0007" in refusal(write("train: {}\nrun: \a"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"train": {"max_steps": ' + "9" * 5000 + "}}", "a whole number of more than 4,300 digits"),
        ('{"train": ' + "[" * 3000 + "]" * 3000 + "}", "nested too deeply"),
        ('{"train": ' + "[" * 101 + "]" * 101 + "}", "nested too deeply"),
        ('{"train": {"learning_rate": NaN}}', "NaN is no number"),
        ('{"train": {"learning_rate": 1e999}}', "1e999 is no number"),
    ],
)
def test_json_that_no_program_could_read_back_is_refused(write, text, said):
    assert f"not valid JSON: {said}" in refusal(write(text, "run.json")) or said in refusal(write(text, "run.json"))


@pytest.mark.parametrize("text", ["train.max_steps={a: 1}", "train.max_steps={}", "train.max_steps=[1]"])
def test_a_mapping_for_a_number_is_a_problem_like_any_other(text):
    with pytest.raises(ConfigError, match=r"train.max_steps: must be a whole number \(got"):
        load_config(ROWS, overrides=[text])


@pytest.mark.parametrize(
    "value",
    [
        "9" * 5000,
        "[" * 3000 + "]" * 3000,
        "{a: " * 3000 + "}" * 3000,
        "&a {b: *a}",
        "&a [*a]",
        "!!timestamp x",
        "\udc80",
    ],
)
def test_set_refuses_what_a_file_may_not_hold(value):
    with pytest.raises(ConfigError, match=r"train.max_steps: .* is not a YAML value"):
        load_config(ROWS, overrides=[f"train.max_steps={value}"])


@pytest.mark.parametrize("name", ["run.yaml", "run.json"])
def test_pipes_and_devices_are_refused_without_waiting(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert "it is a pipe or a device" in refusal(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    assert "it is a pipe or a device" in refusal(tmp_path / name)


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
