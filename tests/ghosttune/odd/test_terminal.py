"""Nothing that a row, a model or a file holds is obeyed by the terminal it is shown on."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_rows import NASTY, OBEYED

import ghosttune.cli
from ghosttune.cli.terminal import on_one_line, visible

FOLDER = Path(ghosttune.cli.__file__).parent


def assert_nothing_obeyed(text: str, *kept: str) -> None:
    """No character of NASTY is there, and where it was one sees it."""
    assert not {character for character in NASTY if character in text} - {":"} & {*"\x1b\x07\x9b\u202e\r\x08"}, text
    assert not {character for character in text if ord(character) < 32 and character not in "\n\t"}
    for character in "\x7f\x9b\u202e\u2066\u2028\ufeff":
        assert character not in text
    assert all(word in text for word in ("\\u001b]52;c;", "\\u202e", *kept)), text


@pytest.mark.parametrize("name", OBEYED)
def test_every_kind_is_shown_in_place_of_being_obeyed(name):
    text = visible(f"a{OBEYED[name]}b\n\tc")
    assert text.startswith("a") and text.endswith("b\n\tc") and "\\u" in text and text.isprintable() is False
    assert not set(OBEYED[name]) & {c for c in text if not c.isprintable()} - {"\n", "\t"}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text())
def test_what_is_shown_is_printable_but_for_lines_and_tabs(text):
    shown = visible(text)
    assert not any(0x7F <= ord(c) < 0xA0 or (ord(c) < 32 and c not in "\n\t") for c in shown)
    assert shown == visible(shown) and "\n" not in on_one_line(text)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.recursive(st.text() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_that_is_shown_is_the_same_json(value):
    assert json.loads(visible(json.dumps(value, indent=2, ensure_ascii=False))) == value


def test_training_shows_rows_and_is_not_obeyed(odd):
    assert_nothing_obeyed(odd[1], "dev row", "harmful ", "[/bold] :warning:", "ghosttune chat ")
    assert not [line for line in odd[1].split("\n") if line.startswith("harmful    -9.99")], "a forged line"


def test_preview_shows_tokens_and_is_not_obeyed(odd_settings, said):
    assert_nothing_obeyed(said("preview", "-n", 2, *odd_settings), "trained (in ⟦ ⟧)")
    assert_nothing_obeyed(said("preview", "-n", 2, *odd_settings, "--json"))


def test_commands_about_rows_are_not_obeyed(odd, said):
    run = odd[0]
    said("index", run, "--device", "cpu")
    asked = ("--prompt", "Say red", "--completion", f"red {NASTY}", "--top", 1, "--tokens", 1)
    lines = said("attribute", run, *asked, "--device", "cpu")
    assert_nothing_obeyed(lines, "⟦\\u")
    assert [line for line in lines.split("\n") if line.startswith("harmful    -9.99")] == [], "a forged line"
    assert_nothing_obeyed(said("cluster", run, "--clusters", 2, "--top", 1, "--by", "tokens", "--device", "cpu"))
    assert_nothing_obeyed(said("cluster", run, "--clusters", 2, "--json", "--device", "cpu"))
    assert_nothing_obeyed(said("dedupe", run, "--cosine", 0.1, "--device", "cpu"))


def test_error_messages_are_not_obeyed(said, tmp_path):
    file = tmp_path / f"{NASTY.replace('/', '')}.yaml"
    file.write_text(json.dumps({NASTY: 1}), encoding="utf-8")
    assert_nothing_obeyed(said("check", file, ok=False))


def test_an_answer_is_shown_as_it_is_written_and_not_obeyed(capsys):
    from ghosttune.cli.talking import Talk
    from ghosttune.inference.chatting import Conversation
    from ghosttune.inference.sampling import GREEDY
    from ghosttune.inference.streaming import Reply

    class Obscene:
        has_adapter = False

        def reply(self, turns, *, tell, **how):
            for character in NASTY:  # a piece may end within a sequence
                tell(character)
            return Reply(NASTY, 1, len(NASTY), "stop")

    talk = Talk(Obscene(), "model", Conversation(GREEDY, 10))  # type: ignore[arg-type]
    assert talk.stream(talk.pipeline, "question") == NASTY
    assert_nothing_obeyed(capsys.readouterr().out)


def test_there_is_no_other_way_to_print():
    """Everything in cli/ prints by `say`, or by the one `line` and the marked texts of `Display`."""
    found = []
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in ("print", "typer.echo", "typer.secho") or called.endswith(
                    ("stdout.write", "stderr.write")
                ):
                    found.append(f"{file.name}: {called}")
                if called.endswith("console.print"):
                    found.append(f"{file.name}: {called}")
    assert sorted(found) == ["display.py: self.console.print"] * 4 + ["terminal.py: typer.echo"]
