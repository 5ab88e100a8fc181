"""A conversation as a value: what was said, and how the next answer is drawn. No terminal, no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ghosttune.data.columns import RowFault
from ghosttune.data.files import shown
from ghosttune.data.images import opened
from ghosttune.data.showing import IMAGES, showing
from ghosttune.data.turns import IMAGE_MARK, Turn, images_of
from ghosttune.errors import DataError, InputError, listed, nearest
from ghosttune.foreign import read_json, read_text
from ghosttune.inference.sampling import GREEDY, Sampling
from ghosttune.run.directory import write_json

READERS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "seed": int,
    "max_new_tokens": int,
}
"""What `/set` can change, and how its value is read."""

LARGEST = 1 << 24
"""Bytes of a saved conversation."""


@dataclass(frozen=True)
class Conversation:
    """Questions and answers in turn, below an optional system message. Every change gives a new conversation."""

    sampling: Sampling = GREEDY
    max_new_tokens: int = 128
    system: str | None = None
    said: tuple[Turn, ...] = ()
    """user, assistant, user, assistant, …"""
    showing: tuple[str, ...] = ()
    """Files that the next question shows."""

    def asking(self, question: str) -> tuple[Turn, ...]:
        """The turns that the model is asked with."""
        return (*self._opening, *self.said, self._asked(question))

    def answered(self, question: str, answer: str) -> Conversation:
        """The conversation with one exchange more."""
        return replace(self, said=(*self.said, self._asked(question), Turn("assistant", answer)), showing=())

    def with_image(self, path: Path) -> Conversation:
        """The next question shows this file too, in front of its words; DataError when it is no image."""
        image = str(path.expanduser().absolute())
        opened(image)
        return replace(self, showing=(*self.showing, image))

    def without_last(self) -> Conversation:
        """The conversation before its last exchange, about to show what that one showed; InputError without one."""
        self.last_question  # noqa: B018  # refuses
        return replace(self, said=self.said[:-2], showing=self.said[-2].images)

    @property
    def last_question(self) -> str:
        """Its words; InputError when nothing has been asked."""
        if not self.said:
            raise InputError("nothing has been said yet")
        last = self.said[-2]
        return last.content.removeprefix(_marks(last.images))

    def cleared(self) -> Conversation:
        """Nothing said or shown; system message and settings stay."""
        return replace(self, said=(), showing=())

    def with_setting(self, name: str, text: str) -> Conversation:
        """One setting changed; InputError names what can be set, or what is accepted."""
        if name not in READERS:
            raise InputError(f"no setting is called {name!r}{nearest(name, READERS)} (known: {listed(READERS)})")
        try:
            value = READERS[name](text)
        except ValueError:
            raise InputError(f"{name} is {text!r}, accepted is a number") from None
        if name != "max_new_tokens":
            return replace(self, sampling=replace(self.sampling, **{name: value}))
        if value < 1:
            raise InputError(f"max_new_tokens is {value}, accepted is 1 or more")
        return replace(self, max_new_tokens=value)

    @property
    def settings(self) -> dict[str, float | int]:
        """What `/set` shows."""
        return {**asdict(self.sampling), "max_new_tokens": self.max_new_tokens}

    def save(self, path: Path) -> None:
        """Writes the conversation as JSON: `messages` as every chat format has them, and `settings`."""
        turns = [
            {"role": turn.role, "content": turn.content, **({IMAGES: list(turn.images)} if turn.images else {})}
            for turn in (*self._opening, *self.said)
        ]
        write_json(path, {"messages": turns, "settings": self.settings})

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """What `save` wrote; DataError when the file holds no conversation."""
        try:
            value = read_json(read_text(path, LARGEST))
            turns = tuple(
                Turn(str(turn["role"]), str(turn["content"]), images=tuple(map(str, turn.get(IMAGES, ()))))
                for turn in value["messages"]
            )
            showing(turns, images_of(turns))
            settings = dict(value["settings"])
            limit = int(settings.pop("max_new_tokens"))
            sampling = Sampling(**settings)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RowFault) as error:
            raise DataError(f"{path} holds no saved conversation: {type(error).__name__}: {error}") from error
        system = turns[0].content if turns and turns[0].role == "system" else None
        said = turns if system is None else turns[1:]
        roles = [turn.role for turn in said]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise DataError(f"{path} holds no saved conversation: its roles are {shown(roles)}")
        return cls(sampling, limit, system, said)

    def _asked(self, question: str) -> Turn:
        return Turn("user", _marks(self.showing) + question, images=self.showing)

    @property
    def _opening(self) -> tuple[Turn, ...]:
        return (Turn("system", self.system),) if self.system else ()


def _marks(images: tuple[str, ...]) -> str:
    """What stands in front of a question that shows these."""
    return f"{IMAGE_MARK}\n" * len(images)
