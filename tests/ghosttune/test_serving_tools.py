"""Tools through the server, as OpenAI's own client meets them; what the model writes is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
openai: Any = pytest.importorskip("openai", reason="the official client is not installed")
jsonschema: Any = pytest.importorskip("jsonschema")

import torch  # noqa: E402
from served import SECONDS, Served, served  # noqa: E402
from small_llama import small_llama  # noqa: E402
from written_calls import ASKED, PARIS, TEMPLATES, TOOLS, calling, rendered, said, template_of, written  # noqa: E402

from ghosttune.data.encoding import Encoder  # noqa: E402
from ghosttune.inference import streaming  # noqa: E402
from ghosttune.inference.pipeline import Pipeline  # noqa: E402
from ghosttune.inference.voices import Limits  # noqa: E402

WRITES: dict[str, Any] = {}
"""What the model is to write next, and the prompt that it was given."""

MODEL: Any = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: None))


@pytest.fixture(scope="module", params=TEMPLATES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def server(family: str) -> Iterator[Served]:
    template = template_of(family)

    def decode(model: Any, prompts: Any, stops: Any, most: int, choose: Any, watch: Callable[[int, int], bool]) -> Any:
        WRITES["prompt"] = template.tokenizer.decode(prompts[0])
        ids = template.tokenizer(WRITES["text"] + template.stop_token, add_special_tokens=False).input_ids
        return [[token for token in ids if not watch(0, token)]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "decode", decode)
        with served(Pipeline(MODEL, Encoder(template, 5000, "completion"), 500), Limits(together=1)) as running:
            yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=SECONDS, max_retries=0) as made:
        yield made


def ask(client: Any, text: str, messages: Any = ASKED, **more: Any) -> Any:
    """The choice, when the model writes this text; streamed, it is the same but for the ids of calls."""
    WRITES["text"] = text
    asked = {"model": "tiny", "messages": messages, "tools": TOOLS, **more}
    whole = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as stream:
        stream.until_done()
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == whole.finish_reason
    assert (streamed.message.content or None) == (whole.message.content or None)
    assert said(streamed.message.tool_calls or ()) == said(whole.message.tool_calls or ())
    return whole


def test_a_call_is_answered_and_the_conversation_goes_on(client: Any, family: str) -> None:
    choice = ask(client, written(family, calling(("weather", PARIS))))
    assert said(choice.message.tool_calls) == [("weather", PARIS)]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert WRITES["prompt"] == rendered(family, ASKED)
    (call,) = choice.message.tool_calls
    for answered in (choice.message, choice.message.model_dump()):
        messages = [*ASKED, answered, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        assert ask(client, "It is sunny.", messages).message.content == "It is sunny."
        history = calling(("weather", PARIS))
        history["tool_calls"][0]["id"] = call.id
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        assert WRITES["prompt"] == rendered(family, [*ASKED, history, result])


def test_words_are_told_as_they_come(client: Any) -> None:
    WRITES["text"] = "No {tool} needed."
    chunks = list(client.chat.completions.create(model="tiny", messages=ASKED, tools=TOOLS, stream=True))
    pieces = [chunk.choices[0].delta.content for chunk in chunks]
    assert "".join(piece or "" for piece in pieces) == "No {tool} needed." and len(pieces) > 10
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_calls_come_in_one_chunk_of_the_shape_that_is_described(client: Any, server: Served, family: str) -> None:
    WRITES["text"] = written(family, calling(("weather", PARIS)))
    schemas = {"components": server.ask("GET", "/openapi.json")[1]["components"]}

    def require(name: str, value: Any) -> None:
        jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **schemas}).validate(value)

    asked = {"model": "tiny", "messages": ASKED, "tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": True}
    require("ChatRequest", asked)
    require("ChatCompletion", server.post("/v1/chat/completions", asked)[1])
    told = server.post("/v1/chat/completions", {**asked, "stream": True})[1].split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in told if event and "[DONE]" not in event]
    for chunk in chunks:
        require("ChatCompletionChunk", chunk)
    first, second, third = (chunk["choices"][0] for chunk in chunks)
    assert first["delta"] == {"role": "assistant", "content": ""} and third["finish_reason"] == "tool_calls"
    (call,) = second["delta"]["tool_calls"]
    assert (call["index"], call["type"], call["function"]["name"]) == (0, "function", "weather")
    assert json.loads(call["function"]["arguments"]) == PARIS


def test_no_choice_keeps_the_tools_from_the_model(client: Any, family: str) -> None:
    text = written(family, calling(("weather", PARIS)))
    choice = ask(client, text, tool_choice="none")
    assert choice.message.tool_calls is None and choice.finish_reason == "stop"
    assert json.dumps(PARIS, ensure_ascii=False)[1:-1] in choice.message.content
    assert WRITES["prompt"] == rendered(family, ASKED, tools=None)


CALLED: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c12345678", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
}
ANSWER = {"role": "tool", "tool_call_id": "c12345678", "content": "sunny"}


def without_object(arguments: str) -> dict[str, Any]:
    call = CALLED["tool_calls"][0]
    return {**CALLED, "tool_calls": [{**call, "function": {"name": "weather", "arguments": arguments}}]}


NUMBERS = {"type": "function", "function": {"name": "a", "parameters": {"type": "array", "items": {}}}}
UNIQUE = {
    "type": "function",
    "function": {"name": "a", "parameters": {"properties": {"b": {"type": "array", "uniqueItems": True}}}},
}


@pytest.mark.parametrize("family", ["qwen-2.5"], scope="module", indirect=True)
@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"tools": []}, "tools: List should have at least 1"),
        ({"tools": [{"name": "weather"}]}, r"tools.0.type: Field required"),
        ({"tools": [{"type": "function", "function": {"name": " "}}]}, "tools.0.function.name: String should match"),
        ({"tools": [{"type": "function", "function": {"name": "a", "strict": True}}]}, "strict: true of a tool"),
        ({"tool_choice": "any"}, "Input should be 'auto', 'none' or 'required'"),
        ({"tool_choice": {"type": "function", "function": {"name": "a"}}}, "not given; tools are: weather, time"),
        ({"tool_choice": "required", "tools": None}, "a tool that is not given; tools are: none"),
        ({"tool_choice": "required", "tools": [NUMBERS]}, "of a have type 'array'; must be 'object'"),
        ({"tool_choice": "required", "tools": [UNIQUE]}, "the schema cannot be kept: .*uniqueItems"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "leave out one of the two"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls: false is kept with tool_choice required or"),
        ({"messages": [*ASKED, CALLED]}, "the last message is the assistant's; it must be the user's, or what a tool"),
        ({"messages": [*ASKED, CALLED, *ASKED]}, "message 2 .user. stands where a tool must answer"),
        ({"messages": [*ASKED, ANSWER]}, "message 1 .tool. answers nothing"),
        ({"messages": [*ASKED, CALLED, {**ANSWER, "tool_call_id": "c9"}]}, "answers the call 'c9'; made are c12345678"),
        ({"messages": [*ASKED, without_object("[1]"), ANSWER]}, "must call weather with an object of arguments"),
        ({"messages": [*ASKED, without_object("{")]}, "or the JSON text of one, is"),
        ({"messages": [*ASKED, {"role": "assistant"}, *ASKED]}, "must have content or tool_calls"),
        ({"messages": [{**ASKED[0], "tool_calls": CALLED["tool_calls"]}]}, "tool_calls: Extra inputs"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_with_its_reason(client: Any, change: dict[str, Any], saying: str) -> None:
    asked = {"messages": ASKED, "tools": TOOLS, **change}
    with pytest.raises(openai.BadRequestError, match=saying):
        client.chat.completions.create(model="tiny", messages=asked["messages"], extra_body=asked)


SMALL = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Łódź"]}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
BOUND = [
    {"type": "function", "function": {"name": name, "parameters": SMALL, "strict": True}}
    for name in ("weather", "time")
]


@pytest.fixture(scope="module")
def babbling(family: str) -> Iterator[Any]:
    """A model of random weights, which would call nothing by itself."""
    template = template_of(family)
    torch.manual_seed(0)
    model = small_llama(len(template.tokenizer), max_position_embeddings=4096)
    with (
        served(Pipeline(model, Encoder(template, 3000, "completion"), 300)) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", timeout=SECONDS, max_retries=0) as made,
    ):
        yield made


def test_a_call_that_is_required_is_made_and_keeps_to_its_schema(babbling: Any) -> None:
    def calls(**more: Any) -> list[tuple[str, Any]]:
        asked = {"model": "tiny", "messages": ASKED, "tools": BOUND, "temperature": 1.0, **more}
        choices = babbling.chat.completions.create(**asked).choices
        assert {choice.finish_reason for choice in choices} == {"tool_calls"}
        assert all(choice.message.content is None and len(choice.message.tool_calls) == 1 for choice in choices)
        return [call for choice in choices for call in said(choice.message.tool_calls)]

    required = calls(tool_choice="required", n=8, parallel_tool_calls=False)
    required += calls(tool_choice="required", n=8, seed=8)
    named = calls(tool_choice={"type": "function", "function": {"name": "time"}}, n=4)
    for _, arguments in required + named:
        jsonschema.validate(arguments, SMALL)
    assert {name for name, _ in required} == {"weather", "time"} and {name for name, _ in named} == {"time"}
    asked = {"model": "tiny", "messages": ASKED, "tools": BOUND, "tool_choice": "required"}
    with babbling.chat.completions.stream(**asked) as stream:
        stream.until_done()
        streamed = stream.get_final_completion().choices[0]
    assert said(streamed.message.tool_calls) == calls(tool_choice="required", temperature=0)
    cut = babbling.chat.completions.create(**asked, max_tokens=3).choices[0]
    assert (cut.finish_reason, cut.message.tool_calls) == ("length", None)


def test_a_model_whose_template_has_no_tools_says_so() -> None:
    with served(Pipeline.open("builtin:tiny", "cpu")) as server:
        asked = {"model": "tiny", "messages": ASKED, "tools": TOOLS}
        status, refused = server.post("/v1/chat/completions", asked)
        assert status == 400 and "the chat template leaves out tools" in refused["error"]["message"]
        status, _ = server.post("/v1/chat/completions", {**asked, "tool_choice": "none", "max_tokens": 1})
        assert status == 200
