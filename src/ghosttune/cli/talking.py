"""A conversation in the terminal: lines in, answers out as they are written, commands that begin with a slash.

A command is a function of the talk and its argument, entered in `COMMANDS`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttune.cli.rows import attribution_lines, share_lines
from ghosttune.cli.terminal import say
from ghosttune.errors import GhosttuneError, InputError, listed, nearest
from ghosttune.inference.chatting import Conversation
from ghosttune.inference.pipeline import Pipeline

if TYPE_CHECKING:
    from ghosttune.choosing.opened import OpenedRun

LEAVING = ("quit", "exit", "q", "/quit", "/exit")

Command = Callable[["Talk", str], None]


class Talk:
    """One conversation with one model at a terminal."""

    def __init__(
        self,
        pipeline: Pipeline,
        name: str,
        conversation: Conversation,
        device: str = "auto",
        trust_remote_code: bool = False,
    ):
        self.pipeline = pipeline
        self.name = name
        self.conversation = conversation
        self._opening: dict[str, Any] = {"device": device, "trust_remote_code": trust_remote_code}
        self._others: dict[str, Pipeline] = {}
        self._opened: OpenedRun | None = None

    def run(self) -> None:
        """Reads lines until the user leaves; whatever goes wrong with one leaves the conversation as it was."""
        self.say(f"{self.name}. /help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.")
        with _line_editing():
            while (line := _line()) is not None and line.strip() not in LEAVING:
                try:
                    self.hear(line.strip())
                except GhosttuneError as error:
                    self.say(str(error))
                except Exception as error:  # out of memory, say: the conversation is worth more than the answer
                    self.say(f"the answer failed ({type(error).__name__}: {error}); the conversation goes on")

    def hear(self, line: str) -> None:
        """One line: a command, a question, or nothing."""
        if not line.startswith("/"):
            if line:
                self.ask(line)
            return
        name, _, argument = line.partition(" ")
        if name not in COMMANDS:
            raise InputError(f"no command is called {name}{nearest(name, COMMANDS)}; /help lists them")
        COMMANDS[name](self, argument.strip())

    def ask(self, question: str) -> None:
        """Says the answer as it is written, and remembers both; an answer stopped before its first word is nothing."""
        turns = self.conversation.asking(question)
        room = self.pipeline.room(self.conversation.max_new_tokens)
        left_out = (len(turns) - len(self.pipeline.encoder_of(turns).recent_turns(turns, room))) // 2
        if left_out:
            self.say(f"(the oldest {left_out} of {len(turns) // 2} exchanges no longer fit and are left out)")
        answer = self.stream(self.pipeline, question)
        if answer:
            self.conversation = self.conversation.answered(question, answer)

    def stream(self, pipeline: Pipeline, question: str, adapter: bool = True) -> str:
        """Writes an answer to the conversation so far piece by piece, and gives it back; Ctrl-C ends it."""
        with _interruptible() as interrupted:

            def tell(piece: str) -> bool:
                say(piece, end="")
                return interrupted()

            reply = pipeline.reply(
                self.conversation.asking(question),
                max_new_tokens=self.conversation.max_new_tokens,
                sampling=self.conversation.sampling,
                adapter=adapter,
                tell=tell,
            )
        remarks = {"interrupted": " [stopped]", "length": f" [{reply.tokens} tokens: the limit; /set max_new_tokens]"}
        self.say(remarks.get(reply.ended, ""))
        return reply.text

    def other(self, run_or_model: str) -> Pipeline:
        """Another model to compare with, opened once."""
        if run_or_model not in self._others:
            self._others[run_or_model] = Pipeline.open(run_or_model, **self._opening)
        return self._others[run_or_model]

    def opened(self) -> OpenedRun:
        """The run that answers, with its rows; opened once. InputError when a model without rows answers."""
        from ghosttune.choosing.opened import OpenedRun

        if self._opened is None:
            self._opened = OpenedRun(self.name, **self._opening)
        return self._opened

    def say(self, text: str) -> None:
        """A line that is not part of an answer."""
        say(text)


def _help(talk: Talk, argument: str) -> None:
    """what each command does"""
    for name, command in COMMANDS.items():
        talk.say(f"{name:<9} {command.__doc__}")
    talk.say("/quit     leaves, as do quit, exit, q and Ctrl-D")


def _clear(talk: Talk, argument: str) -> None:
    """forget what was said; the system message and the settings stay"""
    talk.conversation = talk.conversation.cleared()
    talk.say("forgotten")


def _undo(talk: Talk, argument: str) -> None:
    """take back the last question and its answer"""
    question = talk.conversation.last_question
    talk.conversation = replace(talk.conversation.without_last(), showing=())
    talk.say(f"taken back: {question}")


def _regen(talk: Talk, argument: str) -> None:
    """answer the last question again, with the next seed"""
    before, question = talk.conversation, talk.conversation.last_question
    if before.sampling.is_greedy:
        raise InputError("greedy answers stay the same; /set temperature 0.7 draws others")
    next_seed = replace(before.sampling, seed=before.sampling.seed + 1)
    talk.conversation = replace(before.without_last(), sampling=next_seed)
    try:
        talk.ask(question)
    finally:
        if talk.conversation.said == before.said[:-2]:  # stopped or failed: the old answer stays
            talk.conversation = before


def _image(talk: Talk, argument: str) -> None:
    """FILE: show an image with the next question, before its words; again for several; `/image -` shows none"""
    if argument == "-":
        talk.conversation = replace(talk.conversation, showing=())
    elif not talk.pipeline.sees:
        raise InputError(f"{talk.name} reads text alone; talk with a model that sees, such as LLaVA 1.5")
    elif argument:
        talk.conversation = talk.conversation.with_image(Path(argument))
    talk.say(f"the next question shows {listed(talk.conversation.showing) or 'no image'}")


def _system(talk: Talk, argument: str) -> None:
    """set the system message; without one, show it; `/system -` removes it"""
    if argument:
        talk.conversation = replace(talk.conversation, system=None if argument == "-" else argument)
    talk.say(f"system: {talk.conversation.system or 'none'}")


def _set(talk: Talk, argument: str) -> None:
    """NAME VALUE: change temperature, top_p, top_k, seed or max_new_tokens; without, show them"""
    name, _, value = argument.partition(" ")
    if name:
        talk.conversation = talk.conversation.with_setting(name, value.strip())
    talk.say("  ".join(f"{name} {value}" for name, value in talk.conversation.settings.items()))


def _save(talk: Talk, argument: str) -> None:
    """FILE: write the conversation as JSON"""
    talk.conversation.save(_path(argument))
    talk.say(f"saved: {len(talk.conversation.said) // 2} exchanges in {argument}")


def _load(talk: Talk, argument: str) -> None:
    """FILE: go on with a saved conversation"""
    talk.conversation = Conversation.load(_path(argument))
    talk.say(f"loaded: {len(talk.conversation.said) // 2} exchanges")


def _compare(talk: Talk, argument: str) -> None:
    """[RUN_OR_MODEL]: the last question answered by this one and by the untouched base, or by another; same seed"""
    question, after = talk.conversation.last_question, talk.conversation
    if not argument and not talk.pipeline.has_adapter:
        raise InputError("this model has no adapter to leave out; name another: /compare RUN_OR_MODEL")
    other = talk.other(argument) if argument else talk.pipeline
    talk.conversation = after.without_last()
    try:
        for name, pipeline, adapter in ((talk.name, talk.pipeline, True), (argument or "base", other, bool(argument))):
            talk.say(f"--- {name}")
            talk.stream(pipeline, question, adapter)
    finally:
        talk.conversation = after


def _why(talk: Talk, argument: str) -> None:
    """[N]: the rows that most raised and lowered the likelihood of the last answer; the run must have been indexed"""
    from ghosttune.choosing.attribute import why

    if not (argument or "5").isdigit() or argument == "0":
        raise InputError(f"/why takes a number of rows, got {argument!r}")
    question, after = talk.conversation.last_question, talk.conversation
    turns = after.without_last().asking(question)
    found = why(talk.opened(), turns, after.said[-1].content, top=int(argument or "5"), tokens=True)
    for line in (*attribution_lines(found), *(line for shares in found.tokens for line in share_lines(shares))):
        talk.say(line)


COMMANDS: dict[str, Command] = {
    "/help": _help,
    "/clear": _clear,
    "/undo": _undo,
    "/regen": _regen,
    "/image": _image,
    "/system": _system,
    "/set": _set,
    "/save": _save,
    "/load": _load,
    "/compare": _compare,
    "/why": _why,
}


def _path(argument: str) -> Path:
    if not argument:
        raise InputError("give a file: /save FILE, /load FILE")
    return Path(argument).expanduser()


def _line() -> str | None:
    """What the user typed; None at the end of the input. Ctrl-C gives an empty line."""
    try:
        return input("> ")
    except KeyboardInterrupt:
        say()
        return ""
    except EOFError:
        say()
        return None
    except UnicodeDecodeError as error:
        say(f"this line is not {error.encoding}")
        return ""


@contextmanager
def _line_editing() -> Iterator[None]:
    """Arrow keys, Ctrl-C, and the lines of earlier talks, where the input is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import readline

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # scripts hand down one that ignores it
    history = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "ghosttune" / "chat_history"
    with suppress(OSError):  # none yet
        readline.read_history_file(history)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        readline.set_history_length(1000)
        with suppress(OSError):  # a home that cannot be written to costs the history, not the talk
            history.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(history)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed since; it is asked between tokens, so that no layer is cut off half-way."""
    pressed: list[int] = []
    before: Any = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
