"""How a run asks its model, in the words of other programs: Jinja for most of them, Go's templates for Ollama."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

from ghosttune.data.chat_templates import chat_text, source_of
from ghosttune.data.templates import Template
from ghosttune.data.turns import Turn
from ghosttune.errors import ModelError

TURNS = (
    "{% for message in messages %}{{ ('' if loop.first else '\\n') + message['role'] | title + ': ' "
    "+ message['content'] + (eos_token if message['role'] == 'assistant' else '') }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{{ message['content'] + ('\\n\\n' if message['role'] == 'system' else "
    "eos_token if message['role'] == 'assistant' else '') }}{% endfor %}"
)
OWN = {"turns": TURNS, "plain": PLAIN}
"""data.template -> the same in Jinja, without the tokenizer's opening."""

ROLES = ("system", "user", "assistant")
START, ANSWER = "", "answer"
"""What stands before the first message, and what the model writes."""


@dataclass(frozen=True)
class Joints:
    """A template that is its messages and what stands between them: (role before, role after) -> text."""

    between: dict[tuple[str, str], str]
    notes: list[str] = field(default_factory=list)
    """What the template does to messages that is not said here."""

    def text(self, turns: Sequence[Turn]) -> str:
        """The prompt for these turns; KeyError where two roles were never seen beside each other."""
        roles = [START, *(turn.role for turn in turns), ANSWER]
        said = ["", *(turn.content for turn in turns)]
        return "".join(text + self.between[pair] for text, pair in zip(said, pairwise(roles), strict=True))


def chat_template_of(template: Template) -> str:
    """Jinja that writes the very prompts of the run; those of `turns` and `plain` have an equivalent here."""
    if template.kind == "chat":
        return source_of(template.tokenizer, has_tools=False)
    opening = "{{ bos_token }}" if template.opening else ""
    return opening + OWN[template.kind]


def prompt_text(template: Template, turns: Sequence[Turn]) -> str:
    """What the run gives its model for these turns."""
    return "".join(part.text for part in template.prompt(turns))


def rendered(template: Template, source: str, turns: Sequence[Turn]) -> str:
    """What a Jinja chat template writes for these turns, with the tokenizer's special tokens."""
    tokenizer = SimpleNamespace(chat_template=source, special_tokens_map=template.tokenizer.special_tokens_map)
    return chat_text(tokenizer, turns, opens_answer=True)


def begins_with_bos(template: Template) -> bool:
    """Whether prompts begin with the token that stands at the beginning of a document."""
    bos = template.tokenizer.bos_token
    return bool(bos) and prompt_text(template, (Turn("user", "A question."),)).startswith(bos)


def joints_of(template: Template) -> Joints:
    """What the run's template writes between messages, proved on conversations; ModelError where it does more.

    The text before each message and the answer is read off four prompts, and must then give every other prompt of
    `conversations` to the letter.
    """
    if "strftime_now" in chat_template_of(template):
        raise ModelError("the chat template writes the date, which Ollama's cannot; use --to gguf with llama.cpp")
    between: dict[tuple[str, str], str] = {}
    system = _accepts_system(template)
    for shape in ("user", "user assistant user", *(("system user", "system user assistant user") if system else ())):
        roles = shape.split()
        turns = tuple(Turn(role, f"zq{place}zq") for place, role in enumerate(roles))
        rest = prompt_text(template, turns)
        for pair, turn in zip(zip([START, *roles], [*roles, ANSWER], strict=True), [*turns, None], strict=True):
            text, found, rest = rest.partition(turn.content) if turn else (rest, True, "")
            if not found or between.setdefault(pair, text) != text:
                raise _depends(pair)
    joints = Joints(between)
    for turns in conversations(system):
        if joints.text(turns) != prompt_text(template, turns):
            raise _depends((turns[-1].role, f"conversation of {len(turns)}"))
    spaced = (Turn("user", " spaces around \n"),)
    if joints.text(spaced) != prompt_text(template, spaced):
        joints.notes.append("the template takes spaces off the ends of messages, which Ollama's templates cannot")
    if not system:
        joints.notes.append("the template accepts no system message; one is left out")
    return joints


def _depends(pair: tuple[str, str]) -> ModelError:
    seen = " -> ".join(filter(None, pair))
    return ModelError(
        f"the chat template is not its messages with fixed text between them (seen at {seen}), so that no template of "
        "Ollama's is known to write the same; use --to gguf and llama.cpp, which reads the template as it is"
    )


def _accepts_system(template: Template) -> bool:
    try:
        return "zq" in prompt_text(template, (Turn("system", "zq"), Turn("user", "hello")))
    except ModelError:
        return False


TEXTS = (
    "What is the capital of France?",
    'He said: "{{ .System }} {% if x %}" and left.',
    "名前は？ Zoë — naïve café 😀",
    "two\n\nlines\tand a tab",
    "`code` $x ${y} \\n <|im_start|> & <b>",
    "1",
)


def conversations(system: bool) -> list[tuple[Turn, ...]]:
    """Prompts of one to nine messages, with and without a system message; no message has spaces at its ends."""
    made = []
    for first in range(len(TEXTS)):
        texts = (TEXTS[first:] + TEXTS[:first]) * 2
        for rounds in (0, 1, 2, 4):
            roles = ["user", *["assistant", "user"] * rounds]
            for opening in ([], ["system"]) if system else ([],):
                made.append(tuple(Turn(r, t) for r, t in zip([*opening, *roles], texts, strict=False)))
    return made


def go_template(joints: Joints, drop: str = "") -> str:
    """The same as a template of Go for Ollama; `drop`: what Ollama itself puts in front, the token of beginnings.

    Every text is a quoted string, so that neither Go nor the Modelfile changes a space of it. Consecutive messages of
    one role are one message to Ollama.
    """
    branches = []
    for role in ROLES:
        texts = {before: text for (before, after), text in joints.between.items() if after == role}
        if START in texts:
            texts[START] = texts[START].removeprefix(drop)
        if texts:
            branches.append(f'eq .Role "{role}" }}}}{_by_last(texts)}{{{{ .Content }}}}{{{{ $last = .Role }}}}')
    (ending,) = {text for (_, after), text in joints.between.items() if after == ANSWER}
    loop = "{{ if " + "{{ else if ".join(branches) + "{{ end }}"
    return '{{ $last := "" }}{{ range .Messages }}' + loop + "{{ end }}" + _quoted(ending)


def _by_last(texts: dict[str, str]) -> str:
    """The text that the role before decides."""
    if len(set(texts.values())) == 1:
        return _quoted(next(iter(texts.values())))
    cases = [f'if eq $last "{before}" }}}}{_quoted(text)}' for before, text in texts.items()]
    return "{{ " + "{{ else ".join(cases) + "{{ end }}"


def _quoted(text: str) -> str:
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""


def modelfile(joints: Joints, template: Template, with_adapter: bool) -> str:
    """What `ollama create NAME -f Modelfile` reads, beside model.gguf and adapter.gguf."""
    tokenizer = template.tokenizer
    drop = tokenizer.bos_token if begins_with_bos(template) else ""
    stops = [tokenizer.convert_ids_to_tokens(number) for number in template.stop_token_ids]
    lines = [
        "# ollama create NAME -f Modelfile && ollama run NAME",
        *(f"# {note}" for note in joints.notes),
        "FROM ./model.gguf",
        *(["ADAPTER ./adapter.gguf"] if with_adapter else []),
        f'TEMPLATE """{go_template(joints, drop)}"""',
        *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
        "PARAMETER temperature 0",
    ]
    return "\n".join(lines) + "\n"


def require_equal_prompts(template: Template, source: str) -> int:
    """ModelError unless the Jinja writes the run's own prompts; how many were compared."""
    asked = conversations(_accepts_system(template))
    for turns in asked:
        own, other = prompt_text(template, turns), rendered(template, source, turns)
        if own != other:
            raise ModelError(f"the chat template for other programs writes {other!r} where the run asks with {own!r}")
    return len(asked)
