"""Chat templates that loop, grow or reach out are refused in bounded time and memory; honest ones are unchanged."""

from __future__ import annotations

import time
import tracemalloc
from types import SimpleNamespace

import pytest

from ghosttune.data import chat_templates
from ghosttune.data.chat_templates import Allowance, chat_text
from ghosttune.data.records import Turn
from ghosttune.data.templates import Template
from ghosttune.errors import ModelError
from ghosttune.models.builtin import builtin_model_folder
from ghosttune.proving.tokenizers import CHATML, GEMMA, LLAMA_2, ZEPHYR

TALK = (Turn("system", "Be brief.  "), Turn("user", " What is\n2 + 2? "), Turn("assistant", "4"), Turn("user", "Sure?"))

TOOLS = (
    "{%- set ns = namespace(last=0, found=false) -%}{%- for m in messages[::-1] -%}{%- set at = (messages|length - 1) -"
    " loop.index0 -%}{%- if not ns.found and m.role == 'user' and not (m.content.startswith('<t>') and"
    " m.content.endswith('</t>')) -%}{%- set ns.last = at -%}{%- set ns.found = true -%}{%- endif -%}{%- endfor -%}"
    "{%- macro said(m, first) -%}{{ '<|' ~ m['role'] ~ '|>' }}{%- if first -%}{{ m.content | trim }}{%- else -%}"
    "{{ m.content.split('\\n')[-1].lstrip('\\n') }}{%- endif -%}{%- endmacro -%}\n"
    "{% for m in messages if m.role != 'system' %}\n    {{ said(m, loop.first) }}{{ eos_token }}{% if tools %}"
    "{{ tools | tojson(indent=4) }}{% endif %}{% if loop.index > 100 %}{% break %}{% endif %}\n{% endfor %}"
    "{{ ns.last }} {{ messages | map(attribute='role') | join(', ') }} {{ messages[0] | tojson }}"
    "{{ (messages | selectattr('role', 'equalto', 'user') | list)[0].content | upper | replace('WHAT', 'which') }}"
    "{{ '%s-%02d' % ('a', 3) }}{{ '{:>5}'.format('b') }}{{ 'x' * 3 + 'y' * 2 }}{{ 7 % 4 ** 2 // 2 }}{{ undefined }}"
    "{% if add_generation_prompt is defined and add_generation_prompt %}<|assistant|>{% endif %}"
)
GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
HONEST = {
    "chatml": CHATML,
    "llama-2": LLAMA_2,
    "zephyr": ZEPHYR,
    "tools": TOOLS,
    "generation": GENERATION,
    "gemma": GEMMA.replace("{{ raise_exception('System role not supported') }}", ""),
}


def repeated(count, body, **start):
    """A template that does something so often, with what it keeps in `ns`."""
    kept = ", ".join(f"{name}={value!r}" for name, value in start.items())
    return f"{{% set ns = namespace({kept}) %}}{{% for i in range({count}) %}}{body}{{% endfor %}}"


GROWING = {
    "a text times a number": "{{ 'a' * 10**10 }}",
    "a number times a text": "{{ 10000000000 * 'a' }}",
    "a list times a number": "{{ ([0] * 10**9)|length }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "powers": repeated(99999, "{% set ns.n = ns.n * ns.n %}", n=3),
    "a text doubled by +": repeated(64, "{% set ns.s = ns.s + ns.s %}", s="ab"),
    "a text doubled by ~": repeated(64, "{% set ns.s = ns.s ~ ns.s %}", s="ab"),
    "a list doubled": repeated(64, "{% set ns.s = ns.s + ns.s %}", s=[1]),
    "lists of one list": repeated(64, "{% set ns.s = [ns.s, ns.s] %}", s=["ab"]) + "{{ ns.s }}",
    "a namespace in itself": "{% set ns = namespace() %}{% set ns.s = [ns, ns] %}{{ ns.s | string }}",
    "replace": "{% set s = 'a' * 9999999 %}{{ s.replace('a', s) }}",
    "the filter replace": "{% set s = 'a' * 9999999 %}{{ s | replace('a', s) }}",
    "join": "{{ ('a' * 999999).join(['b'] * 99999) }}",
    "the filter join": "{{ (['b'] * 99999) | join('a' * 99999) }}",
    "join of what is shared": "{{ ([['a' * 99999] * 9999] * 9999) | join }}",
    "center": "{{ 'a'.center(10**10) }}",
    "zfill": "{{ 'a'.zfill(9999999999) }}",
    "expandtabs": "{{ '\\t'.expandtabs(10**10) }}",
    "indent": "{{ ('\\n' * 999999) | indent(999999) }}",
    "a width": "{{ '%9999999999d' % 1 }}",
    "a named width": "{{ '%(a)9999999999d' % {'a': 1} }}",
    "a width from a value": "{{ '%*d' % (9999999999, 1) }}",
    "a width in format": "{{ '{:9999999999}'.format(1) }}",
    "a width in format from a value": "{{ '{:{}}'.format(1, 9999999999) }}",
    "json far to the right": "{{ messages | tojson(indent=9999999999) }}",
    "rounded": "{{ 5 | round(-9999999999) }}",
    "a block": repeated(64, "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}", s="ab"),
    "plain text": repeated(99999, "plain " * 999),
    "slices kept": repeated(99999, "{% set ns.l = ns.l + [ns.s[1:]] %}", l=[], s="a" * 99999),
}
LOOPING = {
    "loops": repeated(99999, "{% for j in range(99999) %}{% endfor %}"),
    "loops that find nothing": repeated(99999, "{% for j in range(99999) if j < 0 %}{% endfor %}"),
    "loops in filters": repeated(99999, "{{ range(99999) | map('string') | select('none') | list }}"),
    "macros that call themselves": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(99) }}",
    "a recursive loop": "{% for i in [9] recursive %}{% if loop.depth < 99 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
    "comparing": "{% set s = 'a' * 9999999 %}{% set t = s[:-1] %}" + "{{ t ~ 'b' == s ~ 'a' }}{{ s in t }}" * 999,
    "sorting": "{% set l = range(99999) | list %}" + repeated(99999, "{% set m = l | sort(reverse=i % 2) %}"),
}
REACHING_OUT = {
    "include": "{% include 'secret' %}",
    "import": "{% import 'secret' as s %}",
    "from import": "{% from 'secret' import s %}",
    "extends": "{% extends 'secret' %}",
    "no such filter": "{{ 'a' | center(10) }}",
    "a tag left open": "{% for m in messages %}",
    "attributes": "{{ ''.__class__.__mro__ }}",
    "bytes of a number": "{{ (1).to_bytes(9999999999, 'big') }}",
    "translate": "{{ 'a'.translate({97: 'b'}) }}",
    "itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "division by zero": "{{ 1 // 0 }}",
    "adding a number to a text": "{{ 'a' + 1 }}",
    "an underscore": "{% set ns = namespace(_a=1) %}",
    "too long": "a" * 200_001,
    "nested too deeply": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


def tokenizer(template):
    return SimpleNamespace(chat_template=template, special_tokens_map={"bos_token": "<s>", "eos_token": "</s>"})


@pytest.mark.parametrize("opens_answer", [False, True])
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_template_gives_what_transformers_gives(name, opens_answer):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(builtin_model_folder("builtin:tiny"))
    theirs.chat_template = HONEST[name]
    messages = [{"role": turn.role, "content": turn.content} for turn in TALK]
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens_answer)
    assert chat_text(theirs, TALK, opens_answer) == expected
    theirs.chat_template = {"default": HONEST[name], "tool_use": "other"}
    assert chat_text(theirs, TALK, opens_answer) == expected


@pytest.mark.parametrize("name", GROWING)
def test_a_template_that_grows_is_refused_before_it_has_grown(name, slowness):
    start = time.thread_time()
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="the chat template"):
            chat_text(tokenizer(GROWING[name]), TALK, True)
        assert tracemalloc.get_traced_memory()[1] < 400e6
    finally:
        tracemalloc.stop()
    assert time.thread_time() - start < 20 * slowness


@pytest.mark.parametrize("name", LOOPING)
def test_a_template_that_does_not_end_is_ended(name, monkeypatch, slowness):
    monkeypatch.setattr(chat_templates, "STEPS", 20_000)
    monkeypatch.setattr(chat_templates, "SECONDS", 0.5)
    start = time.thread_time()
    with pytest.raises(ModelError, match=r"takes more than 20,000 steps|takes longer than|more text than it may"):
        chat_text(tokenizer(LOOPING[name]), TALK, True)
    assert time.thread_time() - start < 20 * slowness


@pytest.mark.parametrize("name", REACHING_OUT)
def test_a_template_that_cannot_be_used_is_refused_with_its_fault(name):
    with pytest.raises(ModelError, match=r"the chat template .*use data\.template: turns"):
        chat_text(tokenizer(REACHING_OUT[name]), TALK, True)


@pytest.mark.parametrize("template", [5, ["a"], {"other": "a"}])
def test_a_template_of_another_type_is_refused(template):
    with pytest.raises(ModelError, match="is no text but"):
        chat_text(tokenizer(template), TALK, True)


def test_all_renderings_of_a_row_share_its_allowance(monkeypatch):
    """Two per answer, each as long as the row so far: 3,000 turns would take minutes."""
    from transformers import AutoTokenizer

    made = Template("chat", AutoTokenizer.from_pretrained(builtin_model_folder("builtin:tiny")))
    long = [Turn(role, "a") for _ in range(1500) for role in ("user", "assistant")]
    monkeypatch.setattr(chat_templates, "STEPS", 50_000)
    with pytest.raises(ModelError, match="takes more than 50,000 steps for"):
        made.prompt([*long, Turn("user", "a")])
    allowance = Allowance()
    chat_text(made.tokenizer, long[:10], True, allowance)
    first = allowance.steps
    chat_text(made.tokenizer, long[:10], True, allowance)
    assert 50_000 - first == first - allowance.steps
