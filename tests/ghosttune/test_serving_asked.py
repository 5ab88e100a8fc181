"""What OpenAI's own client may ask for beside words: several answers, their likelihood, JSON of a schema."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
openai: Any = pytest.importorskip("openai", reason="the official client is not installed")
jsonschema: Any = pytest.importorskip("jsonschema")

import attacks  # noqa: E402
from served import SECONDS, Served, served  # noqa: E402

from ghosttune.data.records import Turn  # noqa: E402
from ghosttune.inference.likelihood import answer_nats  # noqa: E402
from ghosttune.inference.pipeline import Pipeline  # noqa: E402
from ghosttune.inference.sampling import Sampling  # noqa: E402
from ghosttune.inference.voices import Limits  # noqa: E402

QUESTION = "For the order form: Luke has plenty of pillows. What he needs on Saturday is seven golden boxes."
ASKED = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open("builtin:tiny", "cpu")


@pytest.fixture(scope="module", params=[8, 1], ids=["together", "alone"])
def server(pipeline, request) -> Iterator[Served]:
    with served(pipeline, Limits(together=request.param)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=SECONDS, max_retries=0) as made:
        yield made


def ask(client: Any, **settings: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=ASKED, **settings)


def is_alone(server: Served) -> bool:
    """Whether it has one place only."""
    return (
        server.ask("GET", "/openapi.json")[1]["components"]["schemas"]["ChatRequest"]["properties"]["n"]["anyOf"][0][
            "maximum"
        ]
        == 1
    )


def test_logprobs_add_up_to_the_loss(client, pipeline) -> None:
    choice = ask(client, logprobs=True, top_logprobs=3).choices[0]
    told = choice.logprobs.content
    ((nats, tokens),) = answer_nats(
        pipeline.model, pipeline.encoder, [([Turn("user", QUESTION)], choice.message.content)]
    )
    assert len(told) == tokens and sum(one.logprob for one in told) == pytest.approx(-nats, abs=1e-5)
    assert "".join(one.token for one in told[:-1]).strip() == choice.message.content
    for one in told:
        best = [other.logprob for other in one.top_logprobs]
        assert len(best) == 3 and best == sorted(best, reverse=True) and best[0] == one.logprob, "greedy: the likeliest"
        assert bytes(one.bytes).decode() == one.token


def test_logprobs_of_streams_and_completions_are_those_of_the_whole(client) -> None:
    whole = ask(client, logprobs=True).choices[0].logprobs.content
    chunks = list(ask(client, logprobs=True, stream=True))
    streamed = [
        one for chunk in chunks for one in (chunk.choices[0].logprobs and chunk.choices[0].logprobs.content) or ()
    ]
    assert [one.token for one in streamed] == [one.token for one in whole]
    assert [one.logprob for one in streamed] == pytest.approx([one.logprob for one in whole], abs=1e-5)
    asked = {"model": "tiny", "prompt": "One day Luke", "max_tokens": 6, "logprobs": 2}
    text = client.completions.create(**asked).choices[0]
    told = text.logprobs
    assert len(told.tokens) == len(told.token_logprobs) == 6 and all(len(top) == 2 for top in told.top_logprobs)
    assert "".join(told.tokens).strip() == text.text
    assert told.text_offset == [len("".join(told.tokens[:place])) for place in range(6)]
    chunks = [chunk.choices[0].logprobs for chunk in client.completions.create(**asked, stream=True)]
    assert [offset for part in chunks if part for offset in part.text_offset] == told.text_offset


def test_drawn_tokens_have_the_likelihood_that_nothing_was_ruled_out_of(client, pipeline) -> None:
    """At temperature 1, whatever temperature, top_p and a schema make of it."""
    settings = {"temperature": 1.7, "top_p": 0.8, "seed": 3, "max_tokens": 8, "logprobs": True}
    drawn = ask(client, **settings).choices[0].logprobs.content
    ids = pipeline.prompt_ids(QUESTION)
    import torch

    with torch.no_grad():
        for one in drawn:
            shares = pipeline.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            place = int((shares - one.logprob).abs().argmin())
            assert float(shares[place]) == pytest.approx(one.logprob, abs=1e-5)
            ids = [*ids, place]


def test_several_answers_draw_with_seeds_of_their_own(client, pipeline, server) -> None:
    if is_alone(server):
        pytest.skip("it has one place")
    settings = {"temperature": 1.5, "seed": 7, "max_tokens": 10}
    reply = ask(client, n=4, **settings)
    expected = [
        pipeline.generate([QUESTION], sampling=Sampling(1.5, seed=7 + place), max_new_tokens=10)[0]
        for place in range(4)
    ]
    assert [choice.message.content for choice in reply.choices] == [answer.text for answer in expected]
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.usage.completion_tokens == sum(answer.tokens for answer in expected)
    texts = [""] * 4
    for chunk in ask(client, n=4, stream=True, **settings):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [answer.text for answer in expected]


NAMED = {"type": "string", "maxLength": 12}
SCHEMAS = [
    {"type": "object", "properties": {"name": NAMED, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
     "required": ["name", "count"], "additionalProperties": False},
    {"type": "array", "items": {"enum": ["box", "lamp", "ä🙂"]}, "minItems": 1, "maxItems": 4},
    {"type": "object", "properties": {"who": {"anyOf": [NAMED, {"type": "null"}]}, "at": {"$ref": "#/$defs/place"}},
     "required": ["who", "at"], "additionalProperties": False,
     "$defs": {"place": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"],
                         "additionalProperties": False}}},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
]  # fmt: skip


def of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


@pytest.mark.slow(seconds=30)
def test_a_hundred_of_a_hundred_drawn_answers_keep_to_the_schema(client, server) -> None:
    count = 1 if is_alone(server) else 5
    found = []
    for seed in range(25 // count):
        for schema in SCHEMAS:
            settings = {"temperature": 1.2, "seed": 100 * seed, "n": count, "max_tokens": 200}
            for choice in ask(client, response_format=of(schema), **settings).choices:
                jsonschema.Draft202012Validator(schema).validate(json.loads(choice.message.content))
                found.append(choice.finish_reason)
    assert found == ["stop"] * 100


def test_greedy_answers_keep_to_a_schema_beside_one_that_keeps_to_none(client) -> None:
    plain = ask(client).choices[0].message.content
    for schema in SCHEMAS:
        chunks = ask(client, response_format=of(schema), stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    whole = ask(client, response_format={"type": "json_object"}, max_tokens=40).choices[0]
    assert whole.message.content.startswith('{"') and whole.finish_reason == "length", "it has no end of its own"
    assert ask(client, response_format={"type": "text"}).choices[0].message.content == plain


@pytest.mark.parametrize(
    ("given", "saying"),
    [
        (of({"type": "object", "not": {}}), "the schema cannot be kept: .*not"),
        (of({"type": "colour"}), "the schema cannot be kept"),
        (of({"$ref": "#/$defs/none"}), "the schema cannot be kept"),
        ({"type": "yaml"}, "response_format: Input tag 'yaml'"),
        ({"type": "json_schema"}, "response_format.json_schema.json_schema: Field required"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": [1]}}, "schema: Input should be a valid dict"),
    ],
)
def test_what_cannot_be_kept_is_refused(client, given, saying) -> None:
    with pytest.raises(openai.BadRequestError, match=saying):
        ask(client, response_format=given)


@pytest.mark.parametrize("signals", [1, 2], ids=["gently", "at once"])
def test_sigterm_lets_answers_end_and_a_second_signal_does_not(tmp_path, signals) -> None:
    with attacks.started(tmp_path / "log") as server:
        body = json.dumps({"model": attacks.MODEL, "prompt": "a", "max_tokens": 400, "stream": True, "n": 8})
        asked = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
        asked.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = asked.getresponse()
        answer.readline()  # it is being written
        os.kill(server.process, signal.SIGTERM)
        late = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
        status = 200
        while status == 200:
            late.request("GET", "/health")
            found = late.getresponse()
            status = found.status
            said = json.loads(found.read())
        assert status == 503 and said["error"]["message"] == "the server is being ended"
        if signals == 2:
            os.kill(server.process, signal.SIGTERM)
        told = answer.read().decode()
        assert told.endswith("data: [DONE]\n\n") and ("interrupted" in told) == (signals == 2)
        asked.close()
        late.close()
