"""Templates for other programs, against the run's own rendering."""

from __future__ import annotations

import re

import pytest

from ghosttune.data.templates import Template
from ghosttune.data.turns import Turn
from ghosttune.errors import ModelError
from ghosttune.exporting import asking
from ghosttune.proving.tokenizers import MADE, SMALL, byte_level

KINDS = [
    (name, kind)
    for name in MADE
    for kind in ("chat", "turns", "plain")
    if kind != "chat" or name not in ("small", "first-word")
]


def go(template: str, turns) -> str:
    """What Go's text/template writes, for the few actions that are used: an interpreter of its own, for the tests."""
    out, last, live = [], "", []
    actions = re.findall(r"\{\{ (.*?) \}\}(?=\{\{|$)", template, re.S)
    assert "".join(f"{{{{ {action} }}}}" for action in actions) == template
    body = actions[2 : len(actions) - actions[::-1].index("end") - 1]
    for turn in turns:
        for action in body:
            word = action.partition(" ")[0]
            if word in ("if", "else"):
                left, right = re.findall(r'eq (\S+) "(.*)"', action)[0]
                holds = (turn.role if left == ".Role" else last) == right
                if word == "if":
                    live.append([all(now for now, _ in live) and holds, holds])
                else:
                    above = all(now for now, _ in live[:-1])
                    live[-1] = [above and holds and not live[-1][1], live[-1][1] or holds]
            elif word == "end":
                live.pop()
            elif all(now for now, _ in live):
                if action == ".Content":
                    out.append(turn.content)
                elif action == "$last = .Role":
                    last = turn.role
                else:
                    out.append(eval(action))  # a quoted string, whose notation is Python's too
        assert not live
    rest = actions[len(actions) - actions[::-1].index("end") :]
    return "".join([*out, *map(eval, rest)])


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_every_prompt_is_the_run_s_own(name, kind):
    template = Template(kind, MADE[name]())
    source = asking.chat_template_of(template)
    asked = asking.require_equal_prompts(template, source)
    joints = asking.joints_of(template)
    bos = template.tokenizer.bos_token if asking.begins_with_bos(template) else ""
    written = asking.go_template(joints, bos)
    conversations = asking.conversations(asked == 48)
    assert len(conversations) == asked >= 24
    for turns in conversations:
        assert bos + go(written, turns) == asking.prompt_text(template, turns)


def test_the_modelfile_says_all_that_ollama_must_know():
    template = Template("chat", MADE["small-gemma"]())
    text = asking.modelfile(asking.joints_of(template), template, with_adapter=True)
    assert "FROM ./model.gguf\nADAPTER ./adapter.gguf\n" in text
    assert 'PARAMETER stop "<end_of_turn>"' in text
    assert "# the template takes spaces off" in text and "# the template accepts no system message" in text
    assert text.count('"""') == 2 and "<bos>" not in text


def test_a_default_system_message_stays():
    source = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    joints = asking.joints_of(Template("chat", byte_level(SMALL, source)))
    written = asking.go_template(joints)
    assert go(written, (Turn("user", "hi"),)).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi"
    )
    assert "Be brief" not in go(written, (Turn("system", "x"), Turn("user", "hi")))


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("{{ m.content }}{{ loop.index }}", "fixed text"),
        ("{{ m.content | replace('capital', 'town') }}", "fixed text"),
        ("{{ m.content[:20] }}", "fixed text"),
        ("{{ m.content }}{{ strftime_now('%Y') }}", "the date"),
    ],
)
def test_templates_that_do_more_than_join_are_refused(message, said):
    source = f"{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{message}<|im_end|>\n{{% endfor %}}"
    source += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    template = Template("chat", byte_level(SMALL, source))
    with pytest.raises(ModelError, match=said):
        asking.joints_of(template)
