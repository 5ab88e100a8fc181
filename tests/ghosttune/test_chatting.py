"""The conversation as a value, and a whole talk in a real terminal."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from typing import Any

import psutil
import pytest

from ghosttune.cli.talking import COMMANDS, Talk
from ghosttune.data.records import Turn
from ghosttune.errors import DataError, InputError
from ghosttune.inference.chatting import Conversation
from ghosttune.inference.pipeline import Pipeline
from ghosttune.inference.sampling import Sampling

QUESTION = "For the order form: Luke has plenty of pillows. What he needs on Saturday is seven golden boxes."


def test_every_change_gives_a_new_conversation() -> None:
    empty = Conversation(system="Be short.")
    one = empty.answered("Hi", "Hello")
    assert one.asking("And?") == (
        Turn("system", "Be short."), Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "And?")
    )  # fmt: skip
    assert one.without_last() == one.cleared() == empty
    with pytest.raises(InputError, match="nothing has been said yet"):
        empty.without_last()


def test_settings_are_read_and_refused() -> None:
    changed = Conversation().with_setting("temperature", "0.7").with_setting("max_new_tokens", "9")
    assert (changed.sampling, changed.max_new_tokens) == (Sampling(0.7), 9)
    for name, value, saying in [
        ("temprature", "1", "did you mean temperature"),
        ("top_p", "much", "top_p is 'much', accepted is a number"),
        ("top_p", "nan", "top_p is nan"),
        ("top_k", "-1", "top_k is -1, accepted is 0"),
        ("max_new_tokens", "0", "max_new_tokens is 0, accepted is 1 or more"),
    ]:
        with pytest.raises(InputError, match=saying):
            changed.with_setting(name, value)


def test_a_saved_conversation_comes_back(tmp_path) -> None:
    talk = Conversation(Sampling(0.5, 0.9, 3, 8), 77, "Be é 🙂").answered("Hi\n", "Hello")
    talk.save(tmp_path / "talk.json")
    assert Conversation.load(tmp_path / "talk.json") == talk
    saved = json.loads((tmp_path / "talk.json").read_text())
    for damage in ({"messages": saved["messages"][:2]}, {"settings": {}}, {"messages": "x"}, {"messages": []}):
        (tmp_path / "bad.json").write_text(json.dumps({**saved, **damage, "settings": damage.get("settings", {})}))
        with pytest.raises(DataError, match="holds no saved conversation"):
            Conversation.load(tmp_path / "bad.json")
    for text in ("", "[]", "{"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match="holds no saved conversation"):
            Conversation.load(tmp_path / "bad.json")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open("builtin:tiny", "cpu")


@pytest.fixture
def talk(pipeline) -> Talk:
    return Talk(pipeline, "tiny", Conversation(max_new_tokens=6), "cpu")


def test_whole_turns_are_left_out_the_oldest_first_and_the_system_message_stays(talk, capsys) -> None:
    talk.conversation = Conversation(max_new_tokens=6, system="Be short.")
    for number in range(30):
        talk.conversation = talk.conversation.answered(f"This is question number {number}, a long one", "Yes, it is")
    encoder, room = talk.pipeline.encoder, talk.pipeline.room(6)
    kept = encoder.recent_turns(talk.conversation.asking("Last?"), room)
    assert kept[0] == Turn("system", "Be short.") and kept[-1].content == "Last?"
    assert [turn.role for turn in kept[1:]] == ["user", "assistant"] * ((len(kept) - 2) // 2) + ["user"]
    left_out = (62 - len(kept)) // 2
    assert kept[1].content == f"This is question number {left_out}, a long one"
    assert encoder.prompt_length(kept) + room <= encoder.max_length
    longer = (kept[0], *talk.conversation.asking("Last?")[1 + 2 * (left_out - 1) :])
    assert encoder.prompt_length(longer) + room > encoder.max_length, "no more than had to go"
    talk.hear("Last?")
    assert f"(the oldest {left_out} of 31 exchanges no longer fit" in capsys.readouterr().out
    assert len(talk.conversation.said) == 62, "they are left out of the prompt, not of the conversation"


def test_regen_draws_another_answer_and_undo_takes_it_back(talk, capsys) -> None:
    talk.hear(QUESTION)
    with pytest.raises(InputError, match="greedy answers stay the same"):
        talk.hear("/regen")
    talk.hear("/set temperature 2")
    answers = {talk.conversation.said[-1].content}
    for _ in range(3):
        talk.hear("/regen")
        answers.add(talk.conversation.said[-1].content)
    assert len(answers) > 2 and len(talk.conversation.said) == 2
    assert talk.conversation.sampling.seed == 3
    talk.hear("/undo")
    assert talk.conversation.said == ()


def test_compare_asks_both_with_one_seed_and_changes_nothing(talk, tiny_model, capsys) -> None:
    talk.hear("/set temperature 1.5")
    talk.hear(QUESTION)
    before = talk.conversation
    capsys.readouterr()
    with pytest.raises(InputError, match="no adapter to leave out"):
        talk.hear("/compare")
    talk.hear("/compare builtin:tiny")
    said = capsys.readouterr().out
    first, second = said.removeprefix("--- tiny\n").split("--- builtin:tiny\n")
    assert first == second, "the same model, the same seed"
    talk.hear(f"/compare {tiny_model}")
    assert "--- tiny\n" in capsys.readouterr().out
    assert talk.conversation == before


def test_a_failing_answer_leaves_the_conversation_alive(talk, monkeypatch, capsys) -> None:
    talk.hear("Hello")
    before = talk.conversation
    lines = iter(["boom", "/nope", "/load /nowhere", "/save", "exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr(talk.pipeline, "reply", lambda *_, **__: 1 / 0)
    talk.run()
    said = capsys.readouterr().out
    for saying in (
        "the answer failed (ZeroDivisionError",
        "/help lists them",
        "/nowhere cannot be read",
        "give a file",
    ):
        assert saying in said
    assert talk.conversation == before


def test_help_names_every_command(talk, capsys) -> None:
    talk.hear("/help")
    said = capsys.readouterr().out
    assert all(f"{name} " in said for name in COMMANDS) and "/quit" in said


def deaf() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture
def terminal(tmp_path) -> Any:
    """`ghosttune chat` in a pseudo-terminal, started by what ignores Ctrl-C, as a script's background jobs do; every
    wait has a limit, and it is killed at the end."""
    pexpect = pytest.importorskip("pexpect", reason="the terminal test needs pexpect")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "dumb"}
    arguments = ["-m", "ghosttune", "chat", "builtin:tiny", "--device", "cpu"]
    child = pexpect.spawn(
        sys.executable, arguments, env=environment, encoding="utf-8", timeout=300, cwd=tmp_path, preexec_fn=deaf
    )
    child.setecho(False)
    yield child
    child.close(force=True)


def wait_until_it_reads(terminal: Any) -> None:
    """The prompt stands a moment before its line is read; a key pressed in between is not what a person can press."""
    process, deadline = psutil.Process(terminal.pid), time.monotonic() + 10
    while process.status() != psutil.STATUS_SLEEPING:
        assert time.monotonic() < deadline, f"{process.status()} instead of waiting for a line"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_talk_in_a_terminal(terminal, pipeline, tmp_path) -> None:
    from pexpect import EOF

    def ask(line: str, *expected: str) -> None:
        terminal.sendline(line)
        for text in expected:
            terminal.expect_exact(text)
        terminal.expect("> $")

    terminal.expect_exact("/help lists the commands")
    terminal.expect("> $")
    answer = pipeline.generate([QUESTION])[0].text
    ask(QUESTION, answer)
    ask("", "")
    ask("/help", "/compare", "/quit")
    ask("/system Be short.", "system: Be short.")
    ask("/save talk.json", "saved: 1 exchanges")
    ask("/undo", f"taken back: {QUESTION}")
    ask("/undo", "nothing has been said yet")
    ask("/load talk.json", "loaded: 1 exchanges")
    ask("/nope", "no command is called /nope")
    ask("/set seed 3", "seed 3")
    ask("/clear", "forgotten")
    ask("/set temperature 100", "temperature 100.0")  # every token is as likely: it hardly ever stops by itself
    ask("/set max_new_tokens 400", "max_new_tokens 400")
    terminal.sendline("Hello?")
    terminal.expect("[a-z]{2}")
    terminal.sendcontrol("c")
    terminal.expect_exact("[stopped]")
    terminal.expect("> $")
    ask("/undo", "taken back: Hello?")
    wait_until_it_reads(terminal)
    terminal.sendcontrol("c")
    terminal.expect("> $")
    terminal.send("Hellp\x7fo")  # line editing: backspace
    ask("", "\n")
    saved = Conversation.load(tmp_path / "talk.json")
    assert saved.said == (Turn("user", QUESTION), Turn("assistant", answer)) and saved.system == "Be short."
    terminal.sendline("/quit")
    terminal.expect(EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    history = (tmp_path / "state" / "ghosttune" / "chat_history").read_text()
    assert QUESTION in history and "Hello" in history
