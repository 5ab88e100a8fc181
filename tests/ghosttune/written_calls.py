"""What models of seven families would write when they call tools, as Transformers renders it."""

from __future__ import annotations

import functools
import json
from typing import Any

from tool_templates import HERMES, LLAMA_3_1, MISTRAL, MISTRAL_SMALL, PHI_4_MINI, QWEN_2_5, QWEN_3

from ghosttune.data.templates import Template
from ghosttune.proving.tokenizers import byte_level

TEMPLATES = {
    "qwen-2.5": QWEN_2_5,
    "qwen-3": QWEN_3,
    "llama-3.1": LLAMA_3_1,
    "mistral": MISTRAL,
    "mistral-small": MISTRAL_SMALL,
    "hermes": HERMES,
    "phi-4-mini": PHI_4_MINI,
}
"""Short ones of the same form as the families' own, which are longer by what they say to the model."""

MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
MARKS += ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>", "<|/tool|>", "<|tool_response|>"]
MARKS += ["<|END_RESPONSE|>", "<|END_ACTION|>", "<|END_OF_TURN_TOKEN|>", "<SPECIAL_12>"]
MARKS += ["<|tool_call|>", "<|/tool_call|>", "[TOOL_CALLS]"]
"""Special tokens, the last three of calls."""

WORDS_BESIDE = ("qwen-2.5", "qwen-3", "phi-4-mini")
"""Which write words beside a call, and several calls of which each has marks of its own."""


def function(name: str, **kinds: str) -> dict[str, Any]:
    properties = {argument: {"type": kind} for argument, kind in kinds.items()}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


TOOLS = [function("weather", city="string", days="integer"), function("time", city="string")]
ASKED = [{"role": "user", "content": "Paris?"}]
PARIS = {"city": "Paris – “là”", "days": 3, "more": {"units": ["°C", None, 1.5, True]}}


def template_with(chat_template: str) -> Template:
    return Template("chat", byte_level(["<bos>", "<eos>", "<pad>", *MARKS], chat_template))


@functools.cache
def template_of(family: str) -> Template:
    return template_with(TEMPLATES[family])


def calling(*calls: tuple[str, dict[str, Any]], words: str = "") -> dict[str, Any]:
    """A message as templates get it."""
    made = [
        {"id": f"{number:09}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": words, "tool_calls": made}


def rendered(family: str, messages: list[dict[str, Any]], opens: bool = True, tools: Any = TOOLS) -> str:
    tokenizer = template_of(family).tokenizer
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=opens)


def written(family: str, answer: dict[str, Any], messages: list[dict[str, Any]] = ASKED) -> str:
    """What the model writes behind its prompt, without the stop token."""
    before, whole = rendered(family, messages), rendered(family, [*messages, answer], opens=False)
    assert whole.startswith(before)
    return whole[len(before) : whole.rindex(template_of(family).stop_token)]


def said(calls: Any) -> list[tuple[str, Any]]:
    """(name, arguments) of calls as OpenAI's client has them, or as we do."""
    named = [getattr(call, "function", call) for call in calls]
    return [(call.name, json.loads(call.arguments)) for call in named]
