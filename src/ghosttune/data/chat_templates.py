"""A model's own chat template, rendered within bounds: it is a program, and its author may be a stranger.

Jinja's sandbox keeps a template from the machine, and not from looping for ever or from making a text of 10 GB. Here
every repetition (the body of a loop, a call, a filter) is a step, and what makes a text or list says its size first.
"""

from __future__ import annotations

import contextvars
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set, Sized, ValuesView
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, wraps
from itertools import takewhile
from typing import Any, ClassVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, _PassArg, pass_context
from jinja2.visitor import NodeTransformer

from ghosttune.data.turns import IMAGE_MARK, TOOLS, Turn, tools_of
from ghosttune.errors import ModelError, listed

STEPS = 2_000_000
"""Of all renderings of one row; a template of the usual kind takes ten for a turn."""

SECONDS = 10.0
"""Of this thread's processor, for all renderings of one row."""

CHARACTERS, GROWTH = 20_000_000, 50
"""What one rendering may make, in texts and list entries: so many, and so many times what it is given."""

SOURCE = 200_000
"""Characters of the template."""

BITS = 4096
"""Of a whole number."""

LOOKS, LARGE = 64, 10_000
"""The clock is looked at every so many steps, and when something of more characters is made."""

LONGEST_FORMAT, WIDEST = 10_000, 1000
ENTRY = 100
"""Characters that an entry of a list or mapping counts for where it becomes text."""

METHODS = {
    str: {
        *("capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find", "format", "index", "isalnum"),
        *(
            "isalpha",
            "isascii",
            "isdecimal",
            "isdigit",
            "islower",
            "isnumeric",
            "isspace",
            "istitle",
            "isupper",
            "join",
        ),
        *("ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex"),
        *("rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title"),
        *("upper", "zfill"),
    },
    Mapping: {"copy", "get", "items", "keys", "values"},
    Sequence: {"copy", "count", "index"},
    (int, float, bytes): set(),
}
"""Methods of values that may be called; those of other objects, such as loops and macros, are Jinja's own."""

TEXT_FILTERS = {
    *("capitalize", "e", "escape", "indent", "join", "lower", "replace", "safe", "string", "title", "tojson", "trim"),
    *("truncate", "upper", "urlencode"),
}
"""Filters that read all of what they are given as text."""

FILTERS = TEXT_FILTERS | {
    *(
        "abs",
        "attr",
        "count",
        "d",
        "default",
        "dictsort",
        "first",
        "float",
        "groupby",
        "int",
        "items",
        "last",
        "length",
    ),
    *("list", "map", "max", "min", "reject", "rejectattr", "reverse", "round", "select", "selectattr", "sort", "sum"),
    "unique",
}

STEP, COUNTED, JOINED, MARKED = "step taken", "size counted", "texts joined", "answer marked"
"""Filters that the bounds are made of; no template can name them, for their names are no names."""

OPENS, CLOSES = "\ufdd0", "\ufdd1"
"""Stand around what `{% generation %}` marks while that is looked for: characters that no text has (Unicode keeps them
for the inside of programs)."""


class _TooMuch(Exception):
    """The template does more than it may; says what."""


class Allowance:
    """What rendering one row may still take."""

    def __init__(self) -> None:
        self.steps, self.characters = STEPS, 0
        self.marks = False
        self.until = time.thread_time() + SECONDS

    def spend(self, size: int = 0) -> None:
        """One step, which makes a text or list of this size."""
        self.steps -= 1
        self.characters -= size
        if self.steps < 0:
            raise _TooMuch(f"takes more than {STEPS:,} steps")
        if self.characters < 0:
            raise _TooMuch("makes more text than it may from so short a conversation")
        if (self.steps % LOOKS == 0 or size > LARGE) and time.thread_time() > self.until:
            raise _TooMuch(f"takes longer than {SECONDS:g} s")


_allowance: contextvars.ContextVar[Allowance] = contextvars.ContextVar("allowance")


def chat_text(tokenizer: Any, turns: Sequence[Turn], opens_answer: bool, allowance: Allowance | None = None) -> str:
    """The turns as the tokenizer's chat template writes them; the same text as Transformers' own rendering.

    `opens_answer`: with what stands in front of the model's next words. `allowance`: shared by the renderings of one
    row, which together grow with the square of its turns; a new one where it is not given. It bounds steps (STEPS),
    processor time (SECONDS, and what one operation on the largest text takes) and what is made, and so memory
    (CHARACTERS + GROWTH times the turns' own). Raises ModelError beyond any of them, for a template that cannot be
    read, and for whatever the template itself raises.
    """
    allowance = allowance or Allowance()
    allowance.characters = CHARACTERS + GROWTH * sum(len(turn.words) for turn in turns)
    kinds = listed(turn.role for turn in turns)
    tools = tools_of(turns)
    template = _compiled(source_of(tokenizer, tools is not None))
    habit = _habit(tokenizer)
    token = _allowance.set(allowance)
    try:
        return template.render(
            messages=[_message(turn, habit) for turn in turns if turn.role != TOOLS],
            tools=tools,
            documents=None,
            add_generation_prompt=opens_answer,
            **tokenizer.special_tokens_map,
        )
    except _TooMuch as error:
        raise ModelError(
            f"the chat template {error} for {len(turns)} turns; use data.template: turns, or rows with fewer turns"
        ) from None
    except RecursionError:
        raise ModelError("the chat template calls itself without end; use data.template: turns") from None
    except jinja2.TemplateError as error:
        raise ModelError(
            f"the chat template refuses the turns {kinds}: {error}; use data.template: turns, or rows it accepts"
        ) from error
    except Exception as error:  # whatever its expressions raise
        raise ModelError(
            f"the chat template fails for the turns {kinds} ({type(error).__name__}: {error}); use data.template: turns"
        ) from error
    finally:
        _allowance.reset(token)


def marked_by(
    tokenizer: Any, turns: Sequence[Turn], allowance: Allowance | None = None
) -> tuple[tuple[int, int], ...] | None:
    """The characters of `chat_text(…, opens_answer=False)` that the template marks with `{% generation %}`.

    Transformers trains them as what the assistant says. None where the template has no such marks. ModelError where it
    changes what it has marked, so that the place cannot be known.
    """
    if not _has_marks(source_of(tokenizer, tools_of(turns) is not None)):
        return None
    allowance = allowance or Allowance()
    plain = chat_text(tokenizer, turns, opens_answer=False, allowance=allowance)
    allowance.marks = True
    try:
        text = chat_text(tokenizer, turns, opens_answer=False, allowance=allowance)
    finally:
        allowance.marks = False
    spans: list[tuple[int, int]] = []
    place = start = 0
    for piece in re.split(f"([{OPENS}{CLOSES}])", text):
        if piece == OPENS:
            start = place
        elif piece == CLOSES:
            spans.append((start, place))  # may be empty
        else:
            place += len(piece)
    if _MARK.sub("", text) != plain or "".join(_MARK.findall(text)) != (OPENS + CLOSES) * len(spans):
        raise ModelError(
            "the chat template changes what it marks with {% generation %}, so that what it trains cannot be found; "
            "use data.template: turns"
        )
    return tuple(spans)


@lru_cache
def _has_marks(source: str) -> bool:
    """As Transformers decides it."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None


_MARK = re.compile(f"[{OPENS}{CLOSES}]")


@dataclass(frozen=True)
class _Habit:
    """How a template takes what is said."""

    words_as_parts: bool
    """Words are lost unless they are a part of a list."""
    shows_images: bool
    """It writes something for a part that is an image."""


def shows_images(tokenizer: Any) -> bool:
    """Whether the chat template itself writes what stands for an image."""
    return _habit(tokenizer).shows_images


def picture_written(tokenizer: Any) -> str:
    """What the chat template writes where a message shows an image; empty where it writes nothing."""
    alone, shown = (_tried(tokenizer, parts) or "" for parts in ([_WORDS], [_IMAGE, _WORDS]))
    start = _alike(alone, shown)
    return shown[start : len(shown) - _alike(alone[start:][::-1], shown[start:][::-1])].strip()


def _alike(text: str, other: str) -> int:
    """How many characters both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))


_PROBE = "zqWordszq"
_WORDS, _IMAGE = {"type": "text", "text": _PROBE}, {"type": "image"}


def _habit(tokenizer: Any) -> _Habit:
    """Asked of the template itself, once; a model that sees may take words as a list only."""
    source = source_of(tokenizer, has_tools=False) if _has_one(tokenizer) else ""
    if source not in _habits:
        words, part = _tried(tokenizer, _PROBE), _tried(tokenizer, [_WORDS])
        image = _tried(tokenizer, [_IMAGE, _WORDS])
        _habits[source] = _Habit(words is None and part is not None, image is not None and image != part)
    return _habits[source]


_habits: dict[str, _Habit] = {}


def _has_one(tokenizer: Any) -> bool:
    source = tokenizer.chat_template
    return isinstance(source, str) or (isinstance(source, dict) and isinstance(source.get("default"), str))


def _tried(tokenizer: Any, content: Any) -> str | None:
    """A message with this content as the template writes it; None where it does not write the words as they are."""
    if not _has_one(tokenizer):
        return None
    token = _allowance.set(Allowance())
    _allowance.get().characters = CHARACTERS
    try:
        text = _compiled(source_of(tokenizer, has_tools=False)).render(
            messages=[{"role": "user", "content": content}],
            tools=None,
            documents=None,
            add_generation_prompt=False,
            **tokenizer.special_tokens_map,
        )
    except Exception:  # what the template raises for content it does not take
        return None
    finally:
        _allowance.reset(token)
    return text if _PROBE in text and "'type'" not in text else None


def _content(turn: Turn, habit: _Habit) -> Any:
    """The words, or a list of parts where the template shows images so. Line breaks that only set an image off from the
    words, as LLaVA's rows have them, are the template's to write."""
    if turn.images and habit.shows_images:
        texts = turn.content.split(IMAGE_MARK)
        last = len(texts) - 1
        parts: list[dict[str, str]] = []
        for place, text in enumerate(texts):
            parts += [_IMAGE] if place else []
            text = text.removeprefix("\n") if place else text
            text = text.removesuffix("\n") if place < last else text
            parts += [{"type": "text", "text": text}] if text else []
        return parts
    return [{"type": "text", "text": turn.content}] if habit.words_as_parts else turn.content


def _message(turn: Turn, habit: _Habit) -> dict[str, Any]:
    """What the template sees; reasoning under the names that Transformers gives it."""
    message = turn.message | {"content": _content(turn, habit)}
    return message if turn.reasoning is None else {"thinking": turn.reasoning, **message}


def source_of(tokenizer: Any, has_tools: bool) -> str:
    """The template's text; of several the one that Transformers takes where tools are given, or are not."""
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("tool_use", source.get("default")) if has_tools else source.get("default")
    if not isinstance(source, str):
        raise ModelError(
            f"the tokenizer's chat template is no text but {type(source).__name__}; use data.template: turns"
        )
    return source


@lru_cache
def _compiled(source: str) -> jinja2.Template:
    if len(source) > SOURCE:
        raise ModelError(
            f"the chat template has {len(source):,} characters, of which at most {SOURCE:,} are read; "
            "use data.template: turns"
        )
    try:
        return _Bounded().from_string(source)
    except Exception as error:  # Jinja's own, or Python's of the code that Jinja writes
        line = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        said = str(error) if isinstance(error, jinja2.TemplateError) else type(error).__name__
        raise ModelError(f"the chat template cannot be used{line}: {said}; use data.template: turns") from error


class _Bounded(ImmutableSandboxedEnvironment):
    """Transformers' environment for chat templates, with bounds."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, LoopControlExtension],
            finalize=pass_context(lambda context, value: _counted(value, _extent(value))),
        )
        self.filters["tojson"] = _as_json
        self.filters = {name: _bounded(name, self.filters[name]) for name in FILTERS}
        self.filters |= {
            STEP: pass_context(lambda context, value: _counted(value, 0)),
            COUNTED: pass_context(lambda context, value: _counted(value, _length(value))),
            MARKED: pass_context(lambda context, mark: mark if _allowance.get().marks else ""),
            JOINED: pass_context(lambda context, values: _counted("".join(map(str, values)), _extent(values))),
        }
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": lambda format: datetime.now().strftime(format[:WIDEST]),
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
            "namespace": _PublicNamespace,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Bounding().visit(super()._parse(source, name, filename))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _allowance.get().spend(_size_of_operation(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # named as Jinja's
        if getattr(__obj, "__name__", "") == "join" and args:
            args = (_Sized(args[0]), *args[1:])
        _allowance.get().spend(_size_of_call(__obj, args, kwargs))
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        @wraps(formatted)
        def bounded(*args: Any, **kwargs: Any) -> str:
            _allowance.get().spend(_size_of_format(value.__self__, "{", [args, kwargs]))
            return formatted(*args, **kwargs)

        return bounded


class _Bounding(NodeTransformer):
    """Puts the bounds into a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filter(nodes.Const(True), STEP, node), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_filter(nodes.Const(True), STEP, node), node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), JOINED, node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(node, COUNTED, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Expr) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(node, STEP, node)

    visit_Test = visit_Compare

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Const:
        return nodes.Const(node.data, lineno=node.lineno)  # which is counted where it is written

    def visit_Include(self, node: nodes.Node) -> nodes.Node:
        name = {"FromImport": "import"}.get(type(node).__name__, type(node).__name__.lower())
        raise jinja2.TemplateSyntaxError(f"{name} names another file, and a chat template is one text", node.lineno)

    visit_Import = visit_FromImport = visit_Extends = visit_Include


def _filter(node: nodes.Expr, name: str, place: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=place.lineno)


class _Generation(Extension):
    """`{% generation %}`, with which templates mark what the model says."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Any) -> nodes.Scope:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        opens, closes = (
            nodes.Output([nodes.Filter(nodes.Const(mark), MARKED, [], [], None, None, lineno=line)], lineno=line)
            for mark in (OPENS, CLOSES)
        )
        return nodes.Scope([opens, *body, closes], lineno=line)


class _PublicNamespace(Namespace):
    """Without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # as Jinja's, so that `self` can be a name
        for name in dict(*args[1:], **kwargs):
            _require_public(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.TemplateError(f"a name in a namespace cannot begin with an underscore ({name})")


class _Sized(list):  # type: ignore[type-arg]
    """Entries that have been drawn, each of them a step."""

    def __init__(self, values: Any):
        super().__init__(_drawn(iter(values)))


def _bounded(name: str, function: Any) -> Callable[..., Any]:
    """A filter of Jinja's that says first how much it reads and makes."""
    leading = {
        _PassArg.context: lambda context: (context,),
        _PassArg.eval_context: lambda context: (context.eval_ctx,),
        _PassArg.environment: lambda context: (context.environment,),
    }.get(_PassArg.from_obj(function), lambda context: ())  # type: ignore[arg-type]

    @pass_context
    def filtered(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if name == "join":
            value = _Sized(value)
        size = _extent(value) if name in TEXT_FILTERS else _length(value)
        _allowance.get().spend(size + _growth(name, value, [*args, *kwargs.values()]))
        made = function(*leading(context), value, *args, **kwargs)
        return _drawn(made) if isinstance(made, Iterator) else made

    return filtered


def _drawn(values: Iterator[Any]) -> Iterator[Any]:
    for value in values:
        _allowance.get().spend(1)
        yield value


def _counted(value: Any, size: int) -> Any:
    _allowance.get().spend(size)
    return value


def _length(value: Any) -> int:
    return len(value) if isinstance(value, Sized) else 1


def _extent(value: Any) -> int:
    """About how long the value is as text, entries that stand in several places counted in each."""
    size, waiting, most = 0, [value], _allowance.get().characters
    while waiting and size <= most:
        one = waiting.pop()
        if isinstance(one, str | bytes):
            size += len(one)
            continue
        if isinstance(one, Namespace):
            one = vars(one)["_Namespace__attrs"]
        size += ENTRY
        if isinstance(one, Mapping):
            size += ENTRY * len(one)
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, Sequence | Set | ValuesView):
            size += ENTRY * len(one)
            waiting += one if len(one) <= most else []
    return size


def _size_of_operation(operator: str, left: Any, right: Any) -> int:
    if operator == "+" and type(left) is type(right) is str:  # nearly all there is
        return len(left) + len(right)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > BITS:
            raise _TooMuch(f"makes a number of more than {BITS} bits")
        return 0
    if operator == "*":
        count = next((max(value, 0) for value in (left, right) if isinstance(value, int)), 1)
        return count * max(_length(value) for value in (left, right) if not isinstance(value, int))
    if operator == "+":
        return _length(left) + _length(right)
    return _size_of_format(left, "%", right) if operator == "%" and isinstance(left, str | bytes) else 0


def _size_of_call(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Of what a method of a text makes; 0 for other calls. SecurityError for methods that nothing bounds."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    allowed = next((names for kind, names in METHODS.items() if isinstance(owner, kind)), None)
    if allowed is not None and name not in allowed:
        raise jinja2.TemplateError(f"the method {name} of {type(owner).__name__} is not known here")
    if not isinstance(owner, str):
        return 0
    return len(owner) + _growth(name, owner, [*args, *kwargs.values()])


def _growth(name: str, value: Any, args: Sequence[Any]) -> int:
    """What a filter or method may make beyond the length of what it is given."""
    numbers = [abs(arg) for arg in args if isinstance(arg, int | float)]
    texts = [arg for arg in args if isinstance(arg, str)]
    if name in ("center", "ljust", "rjust", "zfill", "truncate"):
        return int(max(numbers, default=0)) + sum(map(len, texts))
    if name in ("indent", "expandtabs"):
        text = str(value)
        return (1 + text.count("\n") + text.count("\t")) * (int(max(numbers, default=8)) + sum(map(len, texts)))
    if name == "replace" and len(texts) > 1:
        return (str(value).count(texts[0]) if texts[0] else len(str(value)) + 1) * len(texts[1])
    if name == "join" and isinstance(value, str):
        return _extent(args) + len(args[0]) * len(value)
    if name == "join":
        return len(value) * sum(map(len, texts))
    if name in ("round", "tojson", "sum") and (max(numbers, default=0) > WIDEST or _extent(args) > WIDEST):
        raise _TooMuch(f"gives the filter {name} more than it takes")
    return 0


def _size_of_format(text: Any, mark: str, values: Any) -> int:
    """Of a text with values put in; refuses widths that make it longer than it looks."""
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    if len(text) > LONGEST_FORMAT or WIDTHS[mark].search(text):
        raise _TooMuch("formats a text of more than it may")
    return len(text) + text.count(mark) * (_extent(values) + WIDEST)


WIDTHS = {"%": re.compile(r"%(\([^)]*\))?[^a-zA-Z%]*?(\d{4}|\*)"), "{": re.compile(r"\{[^{}]*:[^{}]*?(\d{4}|\{)")}


def _as_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As Transformers writes JSON into a template."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
