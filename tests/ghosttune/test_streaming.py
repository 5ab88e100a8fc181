"""Pieces of an answer add up to the whole one, and never have to be taken back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ghosttune.inference.pipeline import Pipeline
from ghosttune.inference.sampling import Sampling
from ghosttune.inference.streaming import TextStream
from ghosttune.models.builtin import builtin_model_folder

TOKENIZER: Any = AutoTokenizer.from_pretrained(builtin_model_folder("builtin:tiny"))
QUESTION = "For the order form: Luke has plenty of pillows. What he needs on Saturday is seven golden boxes."


def streamed(text: str, stops: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    """The pieces as they come, the last one from `finish`."""
    stream, pieces = TextStream(TOKENIZER, stops), []
    for token in TOKENIZER(text, add_special_tokens=False).input_ids:
        pieces.append(stream.add(token))
        if stream.met_stop:
            break
    return [*pieces, stream.finish()], stream


@settings(max_examples=60, deadline=None)
@example("a .", [" ", "a ."])
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.lists(st.text("ab .é", max_size=3), max_size=2)
)
def test_the_pieces_are_the_stripped_text_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    """The first is the first that is complete: no later token can bring another before it."""
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    texts = [TOKENIZER.decode(ids[:count], skip_special_tokens=True) for count in range(len(ids) + 1)]
    stops = [stop for stop in stops if stop]
    whole = next((text for text in texts if any(stop in text for stop in stops)), texts[-1])
    cut = min([whole.find(stop) for stop in stops if stop in whole], default=len(whole))
    pieces, stream = streamed(text, tuple(stops))
    assert "".join(pieces) == stream.said == whole[:cut].strip()
    assert stream.met_stop == any(stop in whole for stop in stops)


def test_characters_of_several_tokens_come_whole() -> None:
    pieces, _ = streamed("a 🙂 b")
    assert "🙂" in pieces or any("🙂" in piece for piece in pieces)
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_beginning_of_a_stop_string_is_held_back() -> None:
    pieces, stream = streamed("one. User: two", ("User:",))
    assert "".join(pieces) == "one." and stream.met_stop
    assert "".join(streamed("one. User", ("User:",))[0]) == "one. User", "what never became one is said at the end"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open("builtin:tiny", "cpu")


def test_a_reply_is_the_answer_of_generate(pipeline) -> None:
    pieces: list[str] = []
    said = pipeline.reply(QUESTION, tell=pieces.append)
    answer = pipeline.generate([QUESTION])[0]
    assert said.text == "".join(pieces) == answer.text
    assert (said.tokens, said.ended) == (answer.tokens, "stop")
    assert said.prompt_tokens == len(pipeline.prompt_ids(QUESTION))
    assert len([piece for piece in pieces if piece]) > 3, "it came piece by piece"
    drawn = Sampling(temperature=1.0, seed=3)
    assert pipeline.reply(QUESTION, sampling=drawn).text == pipeline.generate([QUESTION], sampling=drawn)[0].text


def test_how_a_reply_ended(pipeline) -> None:
    whole = pipeline.reply(QUESTION).text
    word = whole.split()[3]
    stopped = pipeline.reply(QUESTION, stops=[word])
    assert (stopped.text, stopped.ended) == (whole[: whole.index(word)].strip(), "stop")
    assert pipeline.reply(QUESTION, max_new_tokens=2).ended == "length"
    heard: list[str] = []
    interrupted = pipeline.reply(QUESTION, tell=lambda piece: bool(heard.append(piece)) or len(heard) == 3)
    assert (interrupted.ended, interrupted.tokens) == ("interrupted", 3)
    assert pipeline.reply(QUESTION).text == whole, "nothing is left behind by an answer that was cut off"
