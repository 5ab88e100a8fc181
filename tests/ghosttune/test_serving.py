"""The server as OpenAI's own client meets it, and as nobody should: full, fuzzed, left alone."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
openai: Any = pytest.importorskip("openai", reason="the official client is not installed")

from served import SECONDS, Served, served, until  # noqa: E402

from ghosttune.data.records import Turn  # noqa: E402
from ghosttune.inference.access import Access  # noqa: E402
from ghosttune.inference.pipeline import Pipeline  # noqa: E402
from ghosttune.inference.sampling import Sampling  # noqa: E402
from ghosttune.inference.streaming import Writing  # noqa: E402
from ghosttune.inference.voices import Limits  # noqa: E402

QUESTION = "For the order form: Luke has plenty of pillows. What he needs on Saturday is seven golden boxes."
ASKED = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open("builtin:tiny", "cpu")


@pytest.fixture(scope="module")
def server(pipeline) -> Iterator[Served]:
    with served(pipeline) as running:
        yield running


@pytest.fixture(scope="module")
def client(server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=SECONDS, max_retries=0) as made:
        yield made


@pytest.fixture
def slow(monkeypatch) -> Pipeline:
    """A model that takes a twentieth of a second for a token and does not stop by itself."""
    made, original = Pipeline.open("builtin:tiny", "cpu"), Writing.add
    monkeypatch.setattr(type(made.encoder.template), "stop_token_ids", property(lambda template: [0]))
    monkeypatch.setattr(Writing, "add", lambda self, token: time.sleep(0.05) or original(self, token))
    return made


ALL_PLACES = pytest.mark.parametrize("places", [1, 2], ids=["alone", "together"])
"""Answers that are written at once; a request that asks for so many takes all places."""


def test_chat_is_the_answer_of_the_pipeline(client, pipeline) -> None:
    answer = pipeline.generate([QUESTION])[0]
    reply = client.chat.completions.create(model="tiny", messages=ASKED)
    choice = reply.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", answer.text, "stop")
    prompt = len(pipeline.prompt_ids(QUESTION))
    assert reply.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}) == {
        "prompt_tokens": prompt, "completion_tokens": answer.tokens, "total_tokens": prompt + answer.tokens
    }  # fmt: skip
    short = client.chat.completions.create(model="tiny", messages=ASKED, max_completion_tokens=2)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)


def test_a_conversation_with_parts_and_a_system_message(client, pipeline) -> None:
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "Luke 🙂"}]},
        {"role": "assistant", "content": "Hello!"},
        *ASKED,
    ]
    turns = [("system", "Be short."), ("user", "Hello Luke 🙂"), ("assistant", "Hello!"), ("user", QUESTION)]
    expected = pipeline.generate([[Turn(*turn) for turn in turns]])[0].text
    assert client.chat.completions.create(model="tiny", messages=messages).choices[0].message.content == expected


def test_streams_add_up_to_the_whole(client, pipeline) -> None:
    answer = pipeline.generate([QUESTION])[0]
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="tiny", messages=ASKED, stream=True, stream_options=options))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == answer.text and len(pieces) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == answer.tokens
    assert len({chunk.id for chunk in chunks}) == 1
    told = list(client.completions.create(model="tiny", prompt="Hello", stream=True, max_tokens=5))
    whole = client.completions.create(model="tiny", prompt="Hello", max_tokens=5)
    assert "".join(chunk.choices[0].text for chunk in told) == whole.choices[0].text
    assert whole.object == "text_completion" and whole.usage.completion_tokens <= 5


def test_completions_continue_the_text_itself(client, pipeline) -> None:
    template = pipeline.encoder.template
    ids = template.tokenizer(template.opening + "One day Luke", add_special_tokens=False).input_ids
    expected = pipeline.generate([ids], max_new_tokens=8)[0].text
    assert client.completions.create(model="tiny", prompt="One day Luke", max_tokens=8).choices[0].text == expected


def test_seeds_and_stop_strings(client, pipeline) -> None:
    def drawn(seed: int) -> str:
        settings = {"temperature": 1.5, "top_p": 0.95, "seed": seed, "max_tokens": 12}
        reply = client.chat.completions.create(model="tiny", messages=ASKED, extra_body={"top_k": 40}, **settings)
        return reply.choices[0].message.content

    sampling = Sampling(1.5, 0.95, 40, 7)
    assert drawn(7) == drawn(7) == pipeline.generate([QUESTION], sampling=sampling, max_new_tokens=12)[0].text
    assert len({drawn(seed) for seed in range(4)}) > 1
    whole = pipeline.generate([QUESTION])[0].text
    word = whole.split()[3]
    reply = client.chat.completions.create(model="tiny", messages=ASKED, stop=["zq", word])
    assert reply.choices[0].message.content == whole[: whole.index(word)].strip()
    assert reply.choices[0].finish_reason == "stop"


def test_models_health_and_page(client, server) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert server.health() == {"status": "ok", "model": "tiny", "answering": 0, "waiting": 0}
    status, page = server.ask("GET", "/")
    assert status == 200 and "<!doctype html>" in page
    assert "http://" not in page and "https://" not in page, "it needs nothing from elsewhere"


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"temprature": 1}, "temprature: Extra inputs"),
        ({"logprobs": 5}, "logprobs: Input should be a valid boolean"),
        ({"top_logprobs": 2}, "top_logprobs goes with logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: Input should be less than or equal to 20"),
        ({"messages": []}, "messages: List should have at least 1"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "may stand first., are assistant"),
        ({"messages": ASKED * 2}, "are user, user"),
        ({"n": 9}, "n is 9, at most 8"),
        ({"n": 0}, "n: Input should be greater"),
        ({"temperature": "hot"}, "temperature: Input should be a valid number"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater"),
        ({"max_tokens": 2000}, "max_tokens is 2000, at most 1024"),
        ({"max_tokens": 600}, r"the prompt has \d+ tokens; 1 to 0 fit"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, r"the prompt has \d+ tokens; 1 to \d+ fit"),
        ({"messages": [{"role": "user", "content": "x" * 300_000}]}, "the body has more than 262144 bytes"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_with_its_reason(client, change, saying) -> None:
    with pytest.raises(openai.BadRequestError, match=saying):
        client.chat.completions.create(model="tiny", messages=ASKED, extra_body=change)


def test_other_models_calls_and_kinds_of_content(client, server) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served here; 'tiny' is"):
        client.chat.completions.create(model="gpt-4", messages=ASKED)
    assert server.ask("GET", "/v1/nothing")[0] == 404
    assert server.ask("GET", "/v1/completions")[0] == 405
    body = json.dumps({"model": "tiny", "messages": ASKED}).encode()
    status, refused = server.ask("POST", "/v1/chat/completions", body, content_type="text/plain")
    assert status == 400 and "accepted is application/json" in refused["error"]["message"]


def test_a_key_is_asked_for(pipeline) -> None:
    with served(pipeline, access=Access(api_key="pässword")) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
            with pytest.raises(openai.AuthenticationError):
                client.chat.completions.create(model="tiny", messages=ASKED)
        assert server.ask("GET", "/v1/models", authorization="Bearer pässword".encode().decode("latin-1"))[0] == 200
        assert server.health()["status"] == "ok"


@ALL_PLACES
def test_a_full_line_says_so_and_moves_on(slow, places) -> None:
    with (
        served(slow, Limits(waiting=1, together=places)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=SECONDS, max_retries=0) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        asked = {"model": "tiny", "messages": ASKED, "max_tokens": 20, "n": places}
        ask = lambda: client.chat.completions.create(**asked)  # noqa: E731
        first = pool.submit(ask)
        until(lambda: server.health()["answering"])
        second = pool.submit(ask)
        until(lambda: server.health()["waiting"] == 1)
        with pytest.raises(openai.RateLimitError, match="1 requests wait already") as refused:
            ask()
        assert refused.value.response.headers["Retry-After"] == "1"
        texts = {future.result(timeout=SECONDS).choices[0].message.content for future in (first, second)}
        assert len(texts) == 1, "both were answered, and alike"


@ALL_PLACES
def test_a_client_that_leaves_frees_its_place(slow, places) -> None:
    with (
        served(slow, Limits(waiting=1, together=places)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=SECONDS, max_retries=0) as client,
    ):
        asked = {"model": "tiny", "messages": ASKED, "max_tokens": 300, "n": places}
        stream = client.chat.completions.create(**asked, stream=True)
        next(iter(stream))
        until(lambda: server.health()["answering"])  # its first chunk may come before it has a place
        waits = leaving(server)
        until(lambda: server.health()["waiting"] == 1)
        waits.close()
        until(lambda: server.health()["waiting"] == 0, 5)
        assert server.health()["answering"], "the other one is still being answered"
        stream.close()
        until(lambda: not server.health()["answering"], 5)
        alone = leaving(server)
        until(lambda: server.health()["answering"])
        alone.close()
        until(lambda: not server.health()["answering"], 5)


@ALL_PLACES
def test_a_server_that_ends_says_so_to_whoever_waits(slow, places) -> None:
    with ThreadPoolExecutor(3) as pool:
        with served(slow, Limits(waiting=2, together=places)) as server:
            body = {"model": "tiny", "messages": ASKED, "max_tokens": 300, "n": places}
            first = pool.submit(server.post, "/v1/chat/completions", {**body, "stream": True})
            until(lambda: server.health()["answering"])
            waits = [pool.submit(server.post, "/v1/chat/completions", body) for _ in range(2)]
            until(lambda: server.health()["waiting"] == 2)
            began = time.monotonic()
        assert time.monotonic() - began < 10
        status, told = first.result(SECONDS)
        assert status == 200 and '"finish_reason": "interrupted"' in told and told.endswith("data: [DONE]\n\n")
        for one in waits:
            status, refused = one.result(SECONDS)
            assert status == 503 and refused["error"]["message"] == "the server is being ended"


def leaving(server: Served) -> socket.socket:
    """A client that has asked for a long answer and can be closed at any time."""
    body = json.dumps({"model": "tiny", "messages": ASKED, "max_tokens": 300}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    opened = socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)
    opened.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    return opened


def test_an_answer_that_fails_is_told_and_the_others_go_on(server, client, pipeline, monkeypatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Writing, "choose", fails)
        with pytest.raises(openai.InternalServerError, match="RuntimeError: out of memory"):
            client.chat.completions.create(model="tiny", messages=ASKED)
        with pytest.raises(openai.APIError, match="out of memory"):
            list(client.chat.completions.create(model="tiny", messages=ASKED, stream=True))
    assert client.chat.completions.create(model="tiny", messages=ASKED).choices[0].message.content
    until(lambda: server.health()["answering"] == 0)


@pytest.mark.slow
def test_eight_clients_get_what_each_would_get_alone(server, pipeline) -> None:
    names = ["Luke", "Anna", "Maya", "Hugo", "Nora"]
    prompts = [f"For the order form: {names[n % 5]} needs {n} golden boxes on Saturday." for n in range(200)]
    expected = [pipeline.generate([prompt], max_new_tokens=16)[0].text for prompt in prompts]
    threads = threading.Barrier(8)

    def work(worker: int) -> list[str]:
        threads.wait(timeout=SECONDS)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=SECONDS, max_retries=0) as client:
            return [ask(client, prompt, worker % 2 == 1) for prompt in prompts[worker * 25 : worker * 25 + 25]]

    def ask(client: Any, prompt: str, stream: bool) -> str:
        messages = [{"role": "user", "content": prompt}]
        reply = client.chat.completions.create(model="tiny", messages=messages, max_tokens=16, stream=stream)
        return (
            "".join(part.choices[0].delta.content or "" for part in reply)
            if stream
            else reply.choices[0].message.content
        )

    with ThreadPoolExecutor(8) as pool:
        answers = [text for texts in pool.map(work, range(8), timeout=1500) for text in texts]
    assert answers == expected
    assert server.health() == {"status": "ok", "model": "tiny", "answering": 0, "waiting": 0}
