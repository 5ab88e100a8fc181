"""Calls of tools, read from what a model wrote: what its own chat template writes, and nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tool_templates import COMMAND_R7B, DEEPSEEK_V3, NEMOTRON_NANO, QWEN_2_5
from written_calls import (
    ASKED,
    PARIS,
    TEMPLATES,
    TOOLS,
    WORDS_BESIDE,
    calling,
    said,
    template_of,
    template_with,
    written,
)

from ghosttune.data.records import Turn, prompt_of
from ghosttune.errors import ModelError
from ghosttune.inference.calling import Calling
from ghosttune.inference.streaming import TextStream

FAMILIES = list(TEMPLATES)
TURNS = prompt_of({"messages": ASKED, "tools": TOOLS})


def calling_of(family: str) -> Calling:
    return Calling(template_of(family), TURNS)


def streamed(family: str, text: str) -> tuple[list[str], TextStream]:
    """The pieces that are told, token by token."""
    stream = TextStream(template_of(family).tokenizer, (), calling_of(family))
    ids = template_of(family).tokenizer(text, add_special_tokens=False).input_ids
    return [piece for piece in (*map(stream.add, ids), stream.finish()) if piece], stream


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_is_read_from_what_the_template_writes(family: str) -> None:
    pieces, stream = streamed(family, written(family, calling(("weather", PARIS))))
    assert said(stream.calls) == [("weather", PARIS)]
    assert pieces == [] and stream.said == "", "nothing of it is told as words"
    assert re.fullmatch("[0-9a-z]{9}", stream.calls[0].id or ""), "an id that Mistral's template takes"


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llama-3.1"])
def test_several_calls(family: str) -> None:
    calls = [("weather", PARIS), ("time", {"city": 'a "b" \\ {c}'}), ("time", {})]
    _, stream = streamed(family, written(family, calling(*calls)))
    assert said(stream.calls) == calls
    assert len({call.id for call in stream.calls}) == 3


@pytest.mark.parametrize("family", WORDS_BESIDE)
def test_words_before_a_call_are_told_at_once(family: str) -> None:
    words = "Let me <see> {this}: a_b.\n\nSo"
    pieces, stream = streamed(family, written(family, calling(("weather", PARIS), words=words)))
    assert said(stream.calls) == [("weather", PARIS)]
    lead = "<think>\n\n</think>\n\n" if family == "qwen-3" else ""
    assert "".join(pieces) == stream.said == lead + words
    assert len(pieces) > 10


def test_reasoning_before_a_call_is_told_as_the_words_that_give_it_back() -> None:
    message = {**calling(("weather", PARIS)), "reasoning_content": "Look out."}
    _, stream = streamed("qwen-3", written("qwen-3", message))
    assert said(stream.calls) == [("weather", PARIS)] and stream.said == "<think>\nLook out.\n</think>"
    again = {**calling(("weather", PARIS)), "content": stream.said}
    assert written("qwen-3", again) == written("qwen-3", message)


@pytest.mark.parametrize("family", FAMILIES)
def test_json_is_compared_by_what_it_holds(family: str) -> None:
    def spelled(**how: Any) -> str:
        return before + json.dumps(value, **how) + text[end:]

    text = written(family, calling(("weather", PARIS)))
    start = re.search(r'\[?\{\s*"(name|arguments)"', text).start()  # type: ignore[union-attr]
    value, end = json.JSONDecoder().raw_decode(text, start)
    before = text[:start]
    for how in ({"separators": (",", ":")}, {"indent": 2}, {"ensure_ascii": True}, {"sort_keys": True}):
        assert said(streamed(family, spelled(**how))[1].calls) == [("weather", PARIS)], how
    if family == "mistral":
        del value[0]["id"]
        assert said(streamed(family, spelled())[1].calls) == [("weather", PARIS)], "ids are ours"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("change", "to"),
    [
        ("weather", "wether"),
        ('"name"', '"nam"'),
        ('"arguments"|"parameters"', '"args"'),
        ("arguments|parameters", lambda found: {"arguments": "parameters"}.get(found[0], "arguments")),
        ("Paris", '","city": "Rome'),
        ("Paris", "\\\\ud800"),
        ("1.5", "NaN"),
        ("1.5", "[" * 200 + "]" * 200),
        ('"name"', '"type": 2, "name"'),
        (r"\}(?=[^}]*$)", ""),
        ("$", " And so on."),
        ("^", "So: "),
        ("^", '{"name": "time", "arguments": {}}'),
        ("<tool_call>\n|<\\|tool_call\\|>|^(\\[TOOL_CALLS\\] |(?=\\{))", "<call>"),
    ],
)  # fmt: skip
def test_what_the_template_would_not_write_stays_text(family: str, change: str, to: Any) -> None:
    text = re.sub(change, to, written(family, calling(("weather", PARIS))), count=1)
    if change == "^" and to == "So: " and family in WORDS_BESIDE:
        text = text.replace("<tool_call>\n", "<tool_call>").replace("<|tool_call|>", "<|tool_call|> ")
    pieces, stream = streamed(family, text)
    assert stream.calls == () and "".join(pieces) == stream.said == text.rstrip(" ")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_model_did_not_end_is_no_call(family: str) -> None:
    text = written(family, calling(("weather", PARIS)))
    stream = TextStream(template_of(family).tokenizer, (), calling_of(family))
    for token in template_of(family).tokenizer(text, add_special_tokens=False).input_ids:
        assert stream.add(token) == ""
    assert stream.finish(at_stop_token=False) == text.rstrip(" ") and stream.calls == ()
    stopped = TextStream(template_of(family).tokenizer, ("Par",), calling_of(family))
    for token in template_of(family).tokenizer(text, add_special_tokens=False).input_ids:
        if stopped.add(token) or stopped.met_stop:
            break
    stopped.finish()
    assert stopped.said == text[: text.index("Par")].strip() and stopped.calls == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_in_words_is_told_as_it_comes(family: str) -> None:
    words = 'In <b>Paris</b>, [x], {"a": 1}: sunny'
    pieces, stream = streamed(family, words)
    assert "".join(pieces) == words and stream.calls == () and len(pieces) > 15


@pytest.mark.parametrize(
    ("change", "to", "saying"),
    [
        ("tool | tojson", "''", "leaves out tools"),
        ("in message.tool_calls", "in []", "leaves out tool_calls"),
        ("tool_call.arguments | tojson", "tool_call.arguments.items() | list | string", "otherwise than as JSON"),
    ],
)
def test_templates_whose_calls_cannot_be_read_are_refused(change: str, to: str, saying: str) -> None:
    template = template_with(QWEN_2_5.replace(change, to))
    with pytest.raises(ModelError, match=saying):
        Calling(template, TURNS)


@pytest.mark.parametrize(
    ("family", "saying"),
    [
        (COMMAND_R7B, "behind its own generation prompt"),
        (DEEPSEEK_V3, "otherwise than as JSON"),
        (NEMOTRON_NANO, "rewrites|behind its own"),
    ],
    ids=["command-r7b", "deepseek-v3", "nemotron-nano-2"],
)
def test_families_whose_calls_cannot_be_read_are_refused(family: str, saying: str) -> None:
    """Named in docs/limitations.md; words they answer in are read all the same."""
    template = template_with(family)
    assert template.answered(prompt_of({"messages": ASKED}), Turn("assistant", "Sunny.")).strip().endswith("Sunny.")
    with pytest.raises(ModelError, match=saying):
        Calling(template, TURNS)
