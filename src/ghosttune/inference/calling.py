"""Which tools a model calls: what it wrote is a call where its own chat template would have written the same for it.

No family's way of writing is known here. JSON in the text that names one of the tools is taken for a call, the template
writes an answer with these calls, and only where that is what the model wrote were they calls. JSON is compared by what
it holds, without the ids of calls, and what stands around it to the letter.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ghosttune.data.templates import Template
from ghosttune.data.turns import Call, Turn, tools_of
from ghosttune.errors import ModelError
from ghosttune.foreign import read_json

WORDS = "zqWordszq"
"""Stands for words beside a call when a template is asked what it writes between the two."""

ARGUMENTS = ("arguments", "parameters")

PROBE = re.compile(r'\{\s*"zqProbe"\s*:\s*1\s*\}')
"""Arguments that no tool has, as a template may write them."""

OPENED = re.compile(r'(?:\[\s*)?\{\s*"')
"""Where a call, or a list of them, may begin: with a key."""


class Calling:
    """How the model answers these turns, the first of which are tools, when it calls one.

    Raises ModelError where the chat template writes no calls, or none that can be read.
    """

    def __init__(self, template: Template, turns: Sequence[Turn]):
        self._template, self._turns = template, tuple(turns)
        self._names = [tool["function"]["name"] for tool in tools_of(turns) or ()]
        bare = self._some_call("")
        if not (found := _called_in(bare)):
            raise ModelError(
                "the chat template writes calls otherwise than as JSON objects with name and arguments (or "
                "parameters), so that none could be told from words; ask without tools"
            )
        self.opening = bare[: found[0].start + 1]
        """What an answer begins with that calls without a word, up to the bracket of its JSON."""
        self.lead, self.mark = self._around_words()
        """What the template writes before words, and between them and a call, up to the bracket; no mark where it
        writes no words beside a call."""

    def read(self, text: str) -> tuple[str, tuple[Call, ...]] | None:
        """(words, calls) of a whole answer; None where it is words alone."""
        found = _called_in(text)
        if not found or not {name for one in found for name, _ in one.calls} <= set(self._names):
            return None
        calls = tuple(_call(name, arguments) for one in found for name, arguments in one.calls)
        before = text[: found[0].start + 1]
        said = before[: -len(self.mark)] if self.mark and before.endswith(self.mark) else ""
        for words in dict.fromkeys(("", said.removeprefix(self.lead), said)):
            if self._writes(text, Turn("assistant", words, calls=calls)):
                return (said.strip() if words else ""), calls
        return None

    def around_arguments(self, name: str) -> tuple[str, str]:
        """What the template writes before and behind the arguments of one call of this function, and nothing else.

        ModelError where it writes them elsewhere than once and as they are.
        """
        written = self._template.answered(
            self._turns, Turn("assistant", "", calls=(Call(name, '{"zqProbe": 1}', "0" * 9),))
        )
        pieces = PROBE.split(written)
        if len(pieces) != 2 or self.read(f'{pieces[0]}{{"zqProbe": 1}}{pieces[1]}') is None:
            raise ModelError(
                f"the chat template does not write the arguments of {name} once and as they are, so that a call could "
                "not be made sure of; ask with tool_choice auto"
            )
        return pieces[0], pieces[1]

    def _writes(self, text: str, answer: Turn) -> bool:
        """Whether the template writes this text for the answer."""
        try:
            written = self._template.answered(self._turns, answer)
        except ModelError:  # it refuses such an answer, or leaves out some of it
            return False
        return _compared(written.strip()) == _compared(text.strip())

    def _some_call(self, words: str) -> str:
        call = _call(self._names[0], {"argument": "zq"})
        return self._template.answered(self._turns, Turn("assistant", words, calls=(call,)))

    def _around_words(self) -> tuple[str, str]:
        try:
            written = self._some_call(WORDS)
        except ModelError:
            return "", ""
        lead, _, rest = written.partition(WORDS)
        found = _called_in(rest)
        return (lead, rest[: found[0].start + 1]) if found else ("", "")


@dataclass(frozen=True)
class _Called:
    """JSON in a text that names functions."""

    start: int
    end: int
    value: Any
    calls: list[tuple[str, dict[str, Any]]]
    """(name, arguments) of each."""


def _call(name: str, arguments: dict[str, Any]) -> Call:
    """With an id of nine letters and digits: some templates (Mistral's) take no others."""
    return Call(name, json.dumps(arguments, ensure_ascii=False), uuid.uuid4().hex[:9])


def _called_in(text: str) -> list[_Called]:
    return list(_each_called(text))


def _each_called(text: str) -> Iterator[_Called]:
    """The outermost JSON values that are a call, or a list of nothing but calls."""
    place = 0
    while opened := OPENED.search(text, place):
        place = opened.start() + 1
        try:
            end = json.JSONDecoder().raw_decode(text, opened.start())[1]
            value = read_json(text[opened.start() : end])
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair is text to JSON only
        except (ValueError, RecursionError):
            continue
        calls = [_named(entry) for entry in (value if isinstance(value, list) else [value])]
        named = [call for call in calls if call is not None]
        if named and len(named) == len(calls):
            yield _Called(opened.start(), end, value, named)
            place = end


def _named(entry: Any) -> tuple[str, dict[str, Any]] | None:
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    if not isinstance(function, dict):
        return None
    name, arguments = function.get("name"), next((function[key] for key in ARGUMENTS if key in function), None)
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def _compared(text: str) -> list[str]:
    """The text, with each call in one spelling."""
    pieces, place = [], 0
    for one in _each_called(text):
        entries = one.value if isinstance(one.value, list) else [one.value]
        bare = [{key: value for key, value in entry.items() if key != "id"} for entry in entries]
        pieces += [
            text[place : one.start],
            json.dumps(bare if isinstance(one.value, list) else bare[0], sort_keys=True),
        ]
        place = one.end
    return [*pieces, text[place:]]
