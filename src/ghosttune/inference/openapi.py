"""The document that describes the server's calls, made from what reads requests and writes answers.

OpenAPI 3.2 is the first that has streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from ghosttune.inference.answers import (
    RETRIED,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    ErrorBody,
    Health,
    ModelList,
)
from ghosttune.inference.embeddings import EmbeddingList, EmbeddingRequest
from ghosttune.inference.protocol import ChatRequest, CompletionRequest
from ghosttune.inference.reasons import AnswerableList, Why, WhyRequest
from ghosttune.inference.voices import Limits
from ghosttune.version import __version__

REF = "#/components/schemas/{model}"

SHAPES: tuple[type, ...] = (
    ChatRequest,
    CompletionRequest,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    ErrorBody,
    Health,
    ModelList,
    EmbeddingRequest,
    EmbeddingList,
    WhyRequest,
    Why,
    AnswerableList,
)

FAULTS = {
    400: "The request is wrong; the message says how.",
    401: "The key is missing or wrong.",
    403: "Host or Origin is not this server's.",
    404: "No such model.",
    408: "The request was not sent in time.",
    429: "Too many requests wait.",
    500: "The answer failed.",
    503: "The request was not read in time, or the server is being ended.",
}

RETRY_AFTER = {"description": "Seconds.", "required": True, "schema": {"type": "string", "const": "1"}}


def document(models: Sequence[str], limits: Limits, asks_for_key: bool) -> dict[str, Any]:
    """The document of a server of these models."""
    schemas = TypeAdapter.json_schemas([(s, "validation", TypeAdapter(s)) for s in SHAPES], ref_template=REF)[1][
        "$defs"
    ]
    for request in (ChatRequest, CompletionRequest, EmbeddingRequest, WhyRequest):
        schemas[request.__name__]["properties"]["model"] = {"enum": list(models)}
    for request in (ChatRequest, CompletionRequest):
        fields = schemas[request.__name__]["properties"]
        fields["n"]["anyOf"][0]["maximum"] = limits.together
        for name in fields.keys() & {"max_tokens", "max_completion_tokens"}:
            fields[name]["anyOf"][0]["maximum"] = limits.max_new_tokens
    key = [{"key": []}] if asks_for_key else []
    text = {"text/html": {"schema": {"type": "string"}}}
    figures = {"text/plain": {"schema": {"type": "string"}}}
    described = {"application/json": {"schema": {"type": "object"}}}
    paths = {
        "/": _get("page", "A page to talk in.", text, [403]),
        "/health": _get("health", "How many are answered, and how many wait.", _json(Health), [403, 503]),
        "/metrics": _get("metrics", "What has been done, for Prometheus.", figures, [403]),
        "/openapi.json": _get("document", "This document.", described, [403]),
        "/v1/models": _get("models", "The models that are served.", _json(ModelList), [401, 403], key),
        "/v1/chat/completions": _post(
            "chat",
            "The answer to a conversation: an optional system message, user and assistant in turn, tools behind calls.",
            ChatRequest, ChatCompletion, key, ChatCompletionChunk,
        ),
        "/v1/completions": _post(
            "completion", "A text continued, without a template.", CompletionRequest, Completion, key, CompletionChunk
        ),
        "/v1/embeddings": _post(
            "embeddings", "A vector of length 1 for each text.", EmbeddingRequest, EmbeddingList, key
        ),
        "/v1/why": {
            **_get("answerable", "Of which models it is known what is behind an answer.", _json(AnswerableList),
                   [401, 403], key),
            **_post("why", "The training rows that most raised and lowered the likelihood of an answer.",
                    WhyRequest, Why, key),
        },
    }  # fmt: skip
    components = {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    info = {
        "title": "ghosttune",
        "version": __version__,
        "description": "OpenAI's calls, as far as one model has them.",
    }
    return {"openapi": "3.2.0", "info": info, "paths": paths, "components": components}


def _get(name: str, said: str, content: dict[str, Any], faults: list[int], key: Any = ()) -> dict[str, Any]:
    answers = {"200": {"description": said, "content": content}, **_faults(faults)}
    return {"get": {"operationId": name, "summary": said, "responses": answers, "security": list(key)}}


def _post(name: str, said: str, request: type, answer: type, key: Any, chunk: type | None = None) -> dict[str, Any]:
    """A call that is answered as a whole or, where it has chunks, in events."""
    answered = {"description": "The answer.", "content": _json(answer)}
    if chunk:
        told = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [_ref(chunk), _ref(ErrorBody)]}}
        data = {"type": "string", "anyOf": [told, {"const": "[DONE]"}]}
        streamed = {"itemSchema": {"type": "object", "properties": {"data": data}, "required": ["data"]}}
        answered["description"] = "The answer; with `stream`, in events, the last one [DONE]."
        answered["content"] |= {"text/event-stream": streamed}
    body = {"required": True, "content": _json(request)}
    answers = {"200": answered, **_faults(list(FAULTS))}
    return {
        "post": {"operationId": name, "summary": said, "requestBody": body, "responses": answers, "security": list(key)}
    }


def _faults(statuses: list[int]) -> dict[str, Any]:
    def fault(status: int) -> dict[str, Any]:
        headers = {"headers": {"Retry-After": RETRY_AFTER}} if status in RETRIED else {}
        return {"description": FAULTS[status], "content": _json(ErrorBody), **headers}

    return {str(status): fault(status) for status in statuses}


def _json(shape: type) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(shape)}}


def _ref(shape: type) -> dict[str, str]:
    return {"$ref": REF.format(model=shape.__name__)}
