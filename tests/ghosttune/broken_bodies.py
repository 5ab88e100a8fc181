"""Request bodies with something wrong, of every kind: bytes, JSON, types, structure, numbers, text. Seeded."""

from __future__ import annotations

import json
import random
from typing import Any

HALF = "\ud800"
"""Of a surrogate pair: text to JSON, not to anybody else."""

TEXTS = [
    "",
    HALF,
    "\x00",
    "\x1b]52;c;aGk=\x07",
    "x" * 5000,
    "🙂" * 300,
    "\u202e",
    "<|im_end|>",
    "{{ 7 * 7 }}",
    " ",
    "\r\n\r\n",
]
NUMBERS = [True, -1, 0, 0.5, -0.0, 1e-320, 5e-324, 1e-6, 1e-5, 1, 2, 2.0000001, 1e308, 2**31, 2**63, 2**70, 10**400]
JUNK: list[Any] = [None, [], {}, [[]], {"a": {}}, [None] * 300, *TEXTS, *NUMBERS]

NAMES = ["model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed", "stop",
         "stream", "stream_options", "n", "user", "presence_penalty", "frequency_penalty", "prompt", "logit_bias",
         "tools", "tool_choice", "parallel_tool_calls", "response_format"]  # fmt: skip

TOOL = ["name", "description", "parameters", "strict", "returns"]

BYTES = [b"[" * 100_000, b'{"model":NaN}', b'{"a":-Infinity}', b"\xff\xfe{}", b"", b"null", b'{"a":1e999}', b"9" * 5000,
         b'{"model":"tiny",' * 2000, b'{"a":' * 900 + b"1" + b"}" * 900, b"[" + b"1," * 120_000 + b"1]", b'"\\ud800"',
         b'{"model":"tiny","model":1}', "{\"model\":\"tiny\"}".encode("utf-16"), b"\x00" * 1000]  # fmt: skip


def mutated(draw: random.Random, model: str = "tiny") -> bytes:
    """One body; some of them can be answered after all."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    if draw.random() < 0.3:
        body["prompt"] = body.pop("messages") and "Hi"
    kind = draw.choice(
        ["noise", "bytes", "cut", "fields", "fields", "message", "parts", "calls", "many", "numbers", "numbers"]
    )
    if kind == "noise":
        return draw.randbytes(draw.randrange(60))
    if kind == "bytes":
        return draw.choice(BYTES)
    if kind == "cut":
        text = json.dumps(body).encode()
        place = draw.randrange(len(text))
        return text[:place] + draw.randbytes(draw.randrange(3)) + text[place + draw.randrange(4) :]
    if kind == "fields":
        for name in draw.sample(NAMES, draw.randrange(1, 4)):
            body[name] = draw.choice(JUNK)
    elif kind == "message":
        body["messages"] = [{"role": draw.choice(JUNK), "content": draw.choice(JUNK), "name": draw.choice(JUNK)}]
    elif kind == "parts":
        parts = [{"type": draw.choice(["text", *JUNK]), "text": draw.choice(JUNK)} for _ in range(draw.randrange(90))]
        body["messages"] = [{"role": "user", "content": parts}]
    elif kind == "calls":
        body["tools"] = [{"type": "function", "function": {"name": "f", draw.choice(TOOL): draw.choice(JUNK)}}]
        function = {"name": draw.choice(["f", *JUNK]), "arguments": draw.choice(["{}", "[", *JUNK])}
        calls = [{"id": draw.choice(["c", *JUNK]), "type": "function", "function": function}]
        answer = {"role": "tool", "tool_call_id": draw.choice(["c", *JUNK]), "content": "ok"}
        said = {"role": "assistant", "content": draw.choice(["", *JUNK]), "tool_calls": calls}
        body["messages"] = [{"role": "user", "content": "Hi"}, said, answer]
    elif kind == "many":
        roles = draw.choice([["user", "assistant"], ["user"], ["system", "user"], ["assistant"]])
        many = draw.choice([2, 3, 9, 255, 256, 257, 1001])
        body["messages"] = [{"role": roles[n % len(roles)], "content": draw.choice(["a", *TEXTS])} for n in range(many)]
    else:
        for name in ("temperature", "top_p", "top_k", "seed", "max_tokens"):
            body[name] = draw.choice(NUMBERS)
    return json.dumps(body).encode()
