"""The document that the server publishes: what it says of requests and answers is so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
jsonschema: Any = pytest.importorskip("jsonschema")

from attacks import started  # noqa: E402
from served import Served, served  # noqa: E402

from ghosttune.inference.access import Access  # noqa: E402
from ghosttune.inference.pipeline import Pipeline  # noqa: E402
from ghosttune.inference.voices import Limits  # noqa: E402

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open("builtin:tiny", "cpu")


@pytest.fixture(scope="module")
def server(pipeline) -> Iterator[Served]:
    with served(pipeline, Limits(max_new_tokens=5)) as running:
        yield running


@pytest.fixture(scope="module")
def document(server) -> dict[str, Any]:
    return server.ask("GET", "/openapi.json")[1]


def require(document: dict[str, Any], name: str, value: Any) -> None:
    """AssertionError unless the value has the shape of this name."""
    whole = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    jsonschema.Draft202012Validator(whole).validate(value)


def test_answers_have_the_shapes_it_says(server, document) -> None:
    for path, asked, shape in (
        ("/v1/chat/completions", {"messages": MESSAGES}, "ChatCompletion"),
        ("/v1/completions", {"prompt": "One day"}, "Completion"),
    ):
        body = {"model": "tiny", **asked}
        status, whole = server.post(path, body)
        assert status == 200 and whole["usage"]["completion_tokens"] <= 5, "the longest answer is also the default"
        require(document, shape, whole)
        events = server.post(path, {**body, "stream": True, "stream_options": {"include_usage": True}})[1]
        told = [event.removeprefix("data: ") for event in events.split("\n\n") if event]
        assert told[-1] == "[DONE]" and len(told) > 2
        for event in told[:-1]:
            require(document, f"{shape}Chunk", json.loads(event))
    require(document, "Health", server.health())
    require(document, "ModelList", server.ask("GET", "/v1/models")[1])
    refusals = [server.post("/v1/completions", {}), server.ask("GET", "/v1/x"), server.ask("GET", "/", host="x")]
    for _, refused in refusals:
        require(document, "ErrorBody", refused)


def test_it_refuses_what_the_server_refuses(server, document) -> None:
    def is_described(fields: dict[str, Any]) -> bool:
        try:
            require(document, "ChatRequest", fields)
        except jsonschema.ValidationError:
            return False
        return True

    good = {"model": "tiny", "messages": MESSAGES}
    for change, fine in [
        ({}, True), ({"temperature": 0}, True), ({"temperature": 1e-6}, False), ({"temperature": 1e-5}, True),
        ({"top_p": 1e-6}, False), ({"top_p": 1}, True), ({"max_tokens": 5}, True), ({"max_tokens": 6}, False),
        ({"tools": []}, False), ({"messages": []}, False), ({"messages": MESSAGES * 257}, False),
        ({"stop": [""]}, False), ({"model": "gpt-4"}, False), ({"seed": 2**63}, False), ({"n": 9}, False),
        ({"stream": None}, True), ({"n": 8}, True),
    ]:  # fmt: skip
        asked = {**good, **change}
        assert is_described(asked) == fine == (server.post("/v1/chat/completions", asked)[0] == 200), change


def test_it_says_whether_a_key_is_asked_for(pipeline, document) -> None:
    assert document["paths"]["/v1/models"]["get"]["security"] == []
    with served(pipeline, access=Access(api_key="key")) as closed:
        paths = closed.ask("GET", "/openapi.json")[1]["paths"]
    assert [path for path, calls in paths.items() if any(call["security"] for call in calls.values())] == [
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/why",
    ]


@pytest.mark.slow(seconds=30)
def test_schemathesis_finds_no_difference(tmp_path, monkeypatch) -> None:
    """Statuses, shapes, headers and kinds of content as described; what is not described is refused; never 5xx.

    Whether what is described is accepted cannot be asked: no schema says whether a prompt fits.
    """
    pytest.importorskip("schemathesis")
    monkeypatch.setenv("GHOSTTUNE_API_KEY", "key")
    with started(tmp_path / "log", "--max-tokens", "2") as server:
        command = f"""{sys.executable} -m schemathesis.cli --no-color run http://127.0.0.1:{server.port}/openapi.json
            --phases coverage,fuzzing --max-examples 40 --seed 1 --generation-deterministic --no-shrink
            --exclude-checks positive_data_acceptance --request-timeout 30"""
        words = [*command.split(), "-H", "Authorization: Bearer key"]
        environment = os.environ | {"NO_PROXY": "127.0.0.1"}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    selected = re.search(r"(\d+) selected / \1 total", done.stdout)  # operations: a method of a path
    assert selected is not None and int(selected[1]) >= 9, done.stdout[-5000:]
    assert "Traceback" not in (tmp_path / "log").read_text()
