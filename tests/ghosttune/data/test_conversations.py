"""Conversations with tools, calls, reasoning and weights: every token is trained where a mask by hand says so."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from making import CHATML, byte_level, encoder_for, gpt2, shared
from tool_templates import LLAMA_3_1, MARKED, QWEN_2_5, QWEN_3

from ghosttune.config.sections.data import SourceSettings
from ghosttune.data.content import content
from ghosttune.data.encoding import Encoder
from ghosttune.data.inspecting import repeated_rows
from ghosttune.data.records import Record, Turn, prompt_of
from ghosttune.data.sources import Source, open_source
from ghosttune.data.templates import Template
from ghosttune.errors import DataError, ModelError

MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

WEATHER = {
    "name": "weather",
    "description": "Says it.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
SCHEMA = {"type": "function", "function": WEATHER}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}

ASKED = {"role": "user", "content": "Paris?"}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWERED = {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sunny"}
SAID = {"role": "assistant", "content": "Sunny."}
AGAIN = ({"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."})

WITH_TOOLS = {"tools": [SCHEMA], "messages": [ASKED, CALLED, ANSWERED, SAID, *AGAIN]}


@functools.cache
def tokenizer_of(template: str, real: bool = False) -> Any:
    if not real:
        return byte_level(["<bos>", "<eos>", "<pad>", *MARKS], template)
    tokenizer = gpt2()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.chat_template = template
    return tokenizer


def encoder_of(template: str, loss_on: str = "completion", real: bool = False) -> Encoder:
    tokenizer = tokenizer_of(template, real)
    tokenizer.chat_template = template
    return Encoder(Template("chat", tokenizer), 100_000, loss_on)


def read(folder: Path, *rows: dict[str, Any]) -> Source:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_source(SourceSettings(path=str(path)))


def only(folder: Path, row: dict[str, Any]) -> Record:
    (record,) = read(folder, row).records
    return record


def fault(folder: Path, row: dict[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, row)
    assert "rows.jsonl:1: " in str(caught.value)
    return str(caught.value)


def assert_trains(encoder: Encoder, record: Record, by_hand: str) -> None:
    """The row's tokens are those of the text, and trained are those inside ⟦ ⟧."""
    text, spans = "", []
    for number, piece in enumerate(by_hand.replace("⟧", "⟦").split("⟦")):
        if number % 2:
            spans.append((len(text), len(text) + len(piece)))
        text += piece
    tokenizer = encoder.tokenizer
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    features: Any = encoder.encode([record]).features[0]
    assert tokenizer.decode(features.input_ids.tolist()) == text
    assert features.input_ids.tolist() == whole.input_ids
    expected = [any(start <= left and right <= end for start, end in spans) for left, right in whole.offset_mapping]
    assert features.trained.tolist() == expected


def official(encoder: Encoder, row: dict[str, Any]) -> str:
    """What Transformers makes of the row, up to its last stop token."""
    text = encoder.tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False)
    return text[: text.rfind(encoder.template.stop_token) + len(encoder.template.stop_token)]


TOOL_TEXT = (
    '{"type": "function", "function": {"name": "weather", "description": "Says it.", "parameters": '
    '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}'
)

QWEN_2_5_TEXT = (
    f"<|im_start|>system\n# Tools\n\n<tools>\n{TOOL_TEXT}\n</tools><|im_end|>\n"
    "<|im_start|>user\nParis?<|im_end|>\n"
    "<|im_start|>assistant\n"
    '⟦<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>⟧\n'
    "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
    "<|im_start|>assistant\n⟦Sunny.<|im_end|>⟧\n"
    "<|im_start|>user\nSure?<|im_end|>\n"
    "<|im_start|>assistant\n⟦Yes.<|im_end|>⟧"
)
LLAMA_TEXT = (
    "<bos><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nDo not use variables.\n\n"
    f"{json.dumps(SCHEMA, indent=4)}\n\nParis?<|eot_id|>"
    '<|start_header_id|>assistant<|end_header_id|>\n\n⟦{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>⟧'
    "<|start_header_id|>ipython<|end_header_id|>\n\nsunny<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Sunny.<|eot_id|>⟧"
    "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Yes.<|eot_id|>⟧"
)


@pytest.mark.parametrize(
    ("template", "by_hand", "real"),
    [(QWEN_2_5, QWEN_2_5_TEXT, False), (QWEN_2_5, QWEN_2_5_TEXT, True), (LLAMA_3_1, LLAMA_TEXT, False)],
)
def test_calls_and_answers_are_trained_and_nothing_of_the_tools(
    template: str, by_hand: str, real: bool, tmp_path: Path
) -> None:
    encoder = encoder_of(template, real=real)
    by_hand = by_hand.replace("<bos>", encoder.tokenizer.bos_token)
    record = only(tmp_path, WITH_TOOLS)
    assert_trains(encoder, record, by_hand)
    plain = by_hand.replace("⟦", "").replace("⟧", "")
    given_as_object = {
        **WITH_TOOLS,
        "messages": [{"role": "assistant", "content": "", **m} for m in WITH_TOOLS["messages"]],
    }
    assert official(encoder, given_as_object) == plain
    answer = by_hand.rindex("⟦")
    prompt = encoder.tokenizer.decode(encoder.prompt_ids(record))
    assert prompt == by_hand[:answer].replace("⟦", "").replace("⟧", "")
    assert encoder.prompt_ids(prompt_of({**WITH_TOOLS, "messages": WITH_TOOLS["messages"][:-1]})) == encoder.prompt_ids(
        record
    )


THINKING = {
    "messages": [
        ASKED,
        {**SAID, "reasoning_content": "Look out."},
        AGAIN[0],
        {**AGAIN[1], "thinking": "\nLook again."},
    ]
}


def test_reasoning_is_trained_where_the_template_writes_it(tmp_path: Path) -> None:
    encoder, record = encoder_of(QWEN_3), only(tmp_path, THINKING)
    assert_trains(
        encoder,
        record,
        "<|im_start|>user\nParis?<|im_end|>\n<|im_start|>assistant\n⟦Sunny.<|im_end|>⟧\n"
        "<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n⟦<think>\nLook again.\n</think>\n\nYes.<|im_end|>⟧",
    )
    assert official(encoder, THINKING) == "".join(part.text for part in encoder.template.render(record.turns))
    assert encoder.encode([record]).without_reasoning == 1 and encoder.unsaid(record) == 1
    assert record.reference == "Yes." and record.turns[-1].words == "\nLook again.\nYes."
    first = only(tmp_path, {"messages": THINKING["messages"][:2]})
    assert encoder.unsaid(first) == 0
    assert_trains(
        encoder,
        first,
        "<|im_start|>user\nParis?<|im_end|>\n<|im_start|>assistant\n⟦<think>\nLook out.\n</think>\n\nSunny.<|im_end|>⟧",
    )


def test_reasoning_before_a_call_stays_until_the_next_question(tmp_path: Path) -> None:
    encoder = encoder_of(QWEN_3)
    record = only(
        tmp_path, {**WITH_TOOLS, "messages": [ASKED, {**CALLED, "reasoning_content": "Ask."}, ANSWERED, SAID]}
    )
    call = '\n\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>⟧\n'
    assert_trains(
        encoder,
        record,
        f"<|im_start|>system\n# Tools\n\n<tools>\n{TOOL_TEXT}\n</tools><|im_end|>\n"
        f"<|im_start|>user\nParis?<|im_end|>\n<|im_start|>assistant\n⟦<think>\nAsk.\n</think>{call}"
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n⟦<think>\n\n</think>\n\nSunny.<|im_end|>⟧",
    )
    assert encoder.unsaid(record) == 0


@pytest.mark.parametrize(
    ("template", "row", "said"),
    [
        (CHATML, WITH_TOOLS, "leaves out tools, parameters of tools, tool_calls"),
        (CHATML, {"messages": [ASKED, {**CALLED, "content": "Wait."}, ANSWERED, SAID]}, "leaves out tool_calls"),
        (LLAMA_3_1, {"messages": [ASKED, {**CALLED, "content": "Wait."}, ANSWERED, SAID]}, "beside its tool_calls"),
        (QWEN_2_5, THINKING, "writes no reasoning (reasoning_content, thinking)"),
        (
            LLAMA_3_1,
            {"messages": [ASKED, {**CALLED, "tool_calls": [CALL, CALL]}, ANSWERED, SAID]},
            "only supports single tool-calls at once",
        ),
        (
            QWEN_2_5.replace("tool | tojson", "tool.function.name"),
            WITH_TOOLS,
            "leaves out parameters of tools, so that the model would not see it",
        ),
    ],
)
def test_what_a_template_leaves_out_is_refused(template: str, row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        encoder_of(template).encode([only(tmp_path, row)])
    assert said in str(caught.value) and str(caught.value).startswith("rows.jsonl:1: ")


@pytest.mark.parametrize("kind", ["plain", "turns"])
@pytest.mark.parametrize("row", [WITH_TOOLS, THINKING])
def test_kinds_without_tools_and_reasoning_refuse_them(kind: str, row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"data.template: {kind} writes no tools, calls or reasoning"):
        encoder_for("small", kind).encode([only(tmp_path, row)])


@pytest.mark.parametrize(
    "untrained", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss_weight": 0, "train": False}]
)
def test_a_turn_of_weight_0_is_context(untrained: dict[str, Any], tmp_path: Path) -> None:
    messages = [{**ASKED, "weight": 0}, {**SAID, **untrained}, AGAIN[0], {**AGAIN[1], "weight": 1, "train": True}]
    record = only(tmp_path, {"messages": messages})
    begins = "<|im_start|>user\nParis?<|im_end|>\n<|im_start|>assistant\nSunny.<|im_end|>\n"
    ends = "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n⟦Yes.<|im_end|>⟧"
    for loss_on in ("completion", "last_turn"):
        assert_trains(encoder_of(CHATML, loss_on), record, begins + ends)
    whole = f"<|im_start|>⟦user\nParis?<|im_end|>\n<|im_start|>assistant\n⟧Sunny.<|im_end|>⟦\n{ends.replace('⟦', '')}"
    assert_trains(encoder_of(CHATML, "all"), record, whole)
    assert [turn.trains for turn in record.turns] == [True, False, True, True]


def test_only_the_last_turn_is_trained_where_that_is_asked(tmp_path: Path) -> None:
    text = QWEN_2_5_TEXT.replace("⟦", "").replace("⟧", "")
    record = only(tmp_path, WITH_TOOLS)
    assert_trains(encoder_of(QWEN_2_5, "last_turn"), record, text.replace("Yes.<|im_end|>", "⟦Yes.<|im_end|>⟧"))
    first = encoder_of(QWEN_2_5).encode([record]).features[0]
    last = encoder_of(QWEN_2_5, "last_turn").encode([record]).features[0]
    assert first.input_ids.tolist() == last.input_ids.tolist(), "what a turn is worth does not change what it says"


def test_a_template_that_thinks_first_can_train_the_last_turn(tmp_path: Path) -> None:
    """Its earlier answers are written without what the prompt of each begins with: as context they serve."""
    thinks = QWEN_3.replace("{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}")
    record = only(tmp_path, THINKING)
    with pytest.raises(ModelError, match=r"data\.template: turns"):
        encoder_of(thinks).encode([record])
    encoder = encoder_of(thinks, "last_turn")
    assert_trains(
        encoder,
        record,
        "<|im_start|>user\nParis?<|im_end|>\n<|im_start|>assistant\nSunny.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n⟦Look again.\n</think>\n\nYes.<|im_end|>⟧",
    )
    features: Any = encoder.encode([record]).features[0]
    assert encoder.prompt_ids(record) == features.input_ids[~features.trained].tolist()


@pytest.mark.parametrize("real", [False, True])
def test_the_marks_of_a_template_say_what_trains(real: bool, tmp_path: Path) -> None:
    encoder = encoder_of(MARKED, real=real)
    row = {"messages": [ASKED, SAID, *AGAIN]}
    record = only(tmp_path, row)
    by_hand = (
        "<|im_start|>user\nParis?<|im_end|>\n⟦<|im_start|>assistant\nSunny.<|im_end|>⟧\n"
        "<|im_start|>user\nSure?<|im_end|>\n⟦<|im_start|>assistant\nYes.<|im_end|>⟧"
    )
    assert_trains(encoder, record, by_hand)
    theirs = encoder.tokenizer.apply_chat_template(
        row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    features: Any = encoder.encode([record]).features[0]
    assert features.trained.tolist() == [bool(mark) for mark in theirs["assistant_masks"][: len(features)]]
    assert not any(theirs["assistant_masks"][len(features) :])
    untrained = {"messages": [ASKED, {**SAID, "weight": 0}, *AGAIN]}
    last = by_hand.replace("⟦", "", 1).replace("⟧", "", 1)
    assert_trains(encoder, only(tmp_path, untrained), last)
    assert_trains(encoder_of(MARKED, "last_turn", real), record, last)
    marks = CHATML.replace("{{ m.content }}<|im_end|>", "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}")
    with_all_sides = encoder_of(marks)
    assert_trains(
        with_all_sides,
        only(tmp_path, {"messages": [ASKED, SAID]}),
        "<|im_start|>user\n⟦Paris?<|im_end|>⟧<|im_start|>assistant\n⟦Sunny.<|im_end|>⟧",
    )


def test_marks_that_cannot_be_followed_are_refused(tmp_path: Path) -> None:
    captured = "{% set x %}{% generation %}{{ m.content }}{% endgeneration %}{% endset %}{{ x | trim }}"
    record = only(tmp_path, {"messages": [ASKED, {**SAID, "content": " Sunny."}]})
    with pytest.raises(ModelError, match="changes what it marks"):
        encoder_of(CHATML.replace("{{ m.content }}", captured)).encode([record])


def test_no_text_can_move_the_marks(tmp_path: Path) -> None:
    record = only(tmp_path, {"messages": [ASKED, {**SAID, "content": "\ufdd0Sun\ufdd1ny."}]})
    with pytest.raises(ModelError, match="changes what it marks"):
        encoder_of(MARKED).encode([record])


SHAREGPT = {
    "system": "Be brief.",
    "tools": json.dumps([WEATHER]),
    "conversations": [
        {"from": "human", "value": "Paris?"},
        {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Paris"}})},
        {"from": "observation", "value": "sunny"},
        {"from": "gpt", "value": "Sunny."},
    ],
}


def test_sharegpt_is_read_as_the_messages_it_stands_for(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        ASKED,
        {"role": "assistant", "tool_calls": [{"function": CALL["function"]}]},
        {"role": "tool", "content": "sunny"},
        SAID,
    ]
    (record,) = read(tmp_path, SHAREGPT).records
    assert record.turns == only(tmp_path, {"messages": messages, "tools": [SCHEMA]}).turns
    assert record.metadata == {} and record.group == "be brief. paris? sunny"
    assert_trains(
        encoder_of(QWEN_2_5),
        record,
        QWEN_2_5_TEXT[: QWEN_2_5_TEXT.index("\n<|im_start|>user\nSure?")].replace("# Tools", "Be brief.\n\n# Tools"),
    )
    names = [[{"from": name, "value": "x"} for name in pair] for pair in (("user", "chatgpt"), ("human", "bing"))]
    assert [record.turns for record in read(tmp_path, *({"conversations": pair} for pair in names)).records] == [
        (Turn("user", "x"), Turn("assistant", "x"))
    ] * 2


def test_real_rows_of_sharegpt_are_all_read_and_trained() -> None:
    source = open_source(SourceSettings(path=str(shared("data", "instruct", "glaive_toolcall_en_demo.json.gz"))))
    assert (len(source.records), source.row_format, source.dropped) == (300, "messages", {})
    said = Counter(turn.role for record in source.records for turn in record.turns)
    assert said == {"assistant": 957, "user": 746, "tool": 211, "tools": 191}
    assert sum(len(turn.calls) for record in source.records for turn in record.turns) == 211
    encoder = encoder_of(QWEN_2_5)
    features: Any = encoder.encode(source.records).features
    stop = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert sum(int((row.input_ids[row.trained] == stop).sum()) for row in features) == 957


def test_real_rows_of_parts_and_weights_are_all_read() -> None:
    source = open_source(SourceSettings(path=str(shared("data", "instruct", "v1_sft_demo.jsonl.gz"))))
    assert len(source.records) == 500 and source.dropped == {}


def test_content_may_be_parts_and_arguments_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Par"}, {"type": "text", "text": "is?", "image_url": None}]
    as_text = {"id": "c1", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    called = {**CALLED, "tool_calls": [as_text], "name": None, "train": None, "reasoning_content": None}
    row = {"messages": [{**ASKED, "content": parts}, called, ANSWERED, SAID], "tools": json.dumps([SCHEMA])}
    assert only(tmp_path, row).turns == only(tmp_path, {**WITH_TOOLS, "messages": WITH_TOOLS["messages"][:4]}).turns


def test_a_row_is_written_as_a_row_that_reads_the_same(tmp_path: Path) -> None:
    thinking = {**CALLED, "content": "Wait.", "thinking": "Hm.", "weight": 0}
    for row in (
        WITH_TOOLS,
        THINKING,
        SHAREGPT,
        {**WITH_TOOLS, "messages": [ASKED, thinking, ANSWERED, SAID]},
        {"messages": [ASKED, CALLED]},
        {"messages": [ASKED, {**SAID, "train": False}]},
    ):
        record = only(tmp_path, row)
        assert only(tmp_path, content(record)).turns == record.turns
    assert content(only(tmp_path, {"messages": [ASKED, SAID]})) == {"prompt": "Paris?", "completion": "Sunny."}


def test_rows_of_other_calls_are_no_repetitions(tmp_path: Path) -> None:
    other = {**CALL, "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    rows = [{"messages": [ASKED, {**CALLED, "tool_calls": [call]}]} for call in (CALL, other, CALL)]
    assert len(repeated_rows(read(tmp_path, *rows).records)) == 1
    assert read(tmp_path, *rows).records[0].reference == '{"name": "weather", "arguments": {"city": "Paris"}}'


def test_columns_of_other_formats_keep_their_meaning(tmp_path: Path) -> None:
    row = {"prompt": "p", "completion": "c", "tools": "hammer", "system": "linux"}
    assert only(tmp_path, row).metadata == {"tools": "hammer", "system": "linux"}
    assert only(tmp_path, {"messages": [ASKED, SAID], "system": "linux"}).metadata == {"system": "linux"}
    for empty in (None, "", "[]", []):
        assert only(tmp_path, {"messages": [ASKED, SAID], "tools": empty}).turns[0].role == "user"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [ASKED, {**SAID, "weight": 0.5}]}, "message 1 (assistant) has the weight 0.5; known are 0"),
        ({"messages": [ASKED, {**SAID, "weight": True}]}, "has the weight true"),
        ({"messages": [ASKED, {**SAID, "train": 1}]}, "must have true or false as train, has 1"),
        ({"messages": [ASKED, {**SAID, "train": True, "weight": 0}]}, "says both to train it and not to"),
        ({"messages": [{**ASKED, "weight": 1}, SAID]}, "message 0 (user) has weight: 1; only the assistant's"),
        ({"messages": [ASKED, ASKED, SAID]}, "message 1 is a second one of the user, join the two"),
        ({"messages": [ASKED, SAID, SAID]}, "message 2 is a second one of the assistant"),
        ({"messages": [ASKED, CALLED, SAID]}, "stands where a tool must answer the call of message 1"),
        ({"messages": [ASKED, ANSWERED, SAID]}, "message 1 (tool) answers nothing"),
        ({"messages": [ASKED, CALLED, {**ANSWERED, "tool_call_id": "c9"}, SAID]}, "answers the call 'c9'; made are c1"),
        ({"messages": [ASKED, CALLED, ANSWERED]}, "the last message is the tool's"),
        ({"messages": [{**ASKED, "tool_calls": [CALL]}, SAID]}, "has tool_calls, which only the assistant's"),
        ({"messages": [{**ASKED, "thinking": "x"}, SAID]}, "has thinking, which only the assistant's"),
        ({"messages": [ASKED, {**SAID, "thinking": ["x"]}]}, 'must have one text as thinking, has ["x"]'),
        ({"messages": [ASKED, {**SAID, "thinking": "a", "reasoning": "b"}]}, "must have one text as thinking"),
        ({"messages": [ASKED, {"role": "assistant", "content": None}]}, "must have text, has null"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": []}]}, "must have text, has null"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": ["f"]}]}, "must call functions with a name"),
        ({"messages": [ASKED, {**CALLED, "tool_calls": {"a": 1}}]}, "must have a list of tool_calls"),
        (
            {"messages": [ASKED, {**CALLED, "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "must call f with an object, or the JSON text of one, is '{'",
        ),
        ({"messages": [ASKED, {**CALLED, "tool_calls": [{"name": "f", "arguments": [1]}]}]}, "not with [1]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, SAID]}, "data.train.name: image_text"),
        ({"messages": [{"role": "user", "content": [3]}, SAID]}, "message 0 (user) has a part that is no"),
        ({"messages": [ASKED, SAID], "tools": "hammer"}, "tools must be a list of function schemas, or the JSON text"),
        ({"messages": [ASKED, SAID], "tools": {"name": "f"}}, "name it otherwise with data.train.columns"),
        ({"messages": [ASKED, SAID], "tools": [{"x": 1}]}, "tools[0] must be a function with a name"),
        ({"conversations": [ASKED, SAID], "system": 3}, "system must be text, is 3"),
        (
            {"conversations": [{"role": "system", "content": "s"}, ASKED, SAID], "system": "t"},
            "has a column system and a system message",
        ),
        (
            {"conversations": [ASKED, {"from": "function_call", "value": "weather(Paris)"}]},
            "message 1 (assistant) must be the JSON text of a call, is 'weather(Paris)'",
        ),
        ({"conversations": [ASKED, {"from": "function_call", "value": None}]}, "must be the JSON text of a call"),
        ({"conversations": [ASKED, {"from": "function_call", "value": "[]"}]}, "must call functions with a name"),
    ],
)
def test_rows_that_cannot_be_used_say_why(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in fault(tmp_path, row)
