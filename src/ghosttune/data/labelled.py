"""Rows that are not conversations: the columns that classification, tagging and question answering read.

Each reader gives the checked columns and the text by which rows are grouped: rows that show the model the same never
stand on both sides of a split.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ghosttune.data.columns import RowFault, label_name, list_of, text_of, value_of
from ghosttune.data.files import Fields, shown

Content = tuple[dict[str, Any], str]
"""(the columns a task reads, what the row shows the model)."""


def _labelled_text(fields: Fields) -> Content:
    text = text_of(fields, "text")
    return {"text": text, "label": _label(fields)}, text


def _labelled_pair(fields: Fields) -> Content:
    premise, hypothesis = text_of(fields, "premise"), text_of(fields, "hypothesis")
    return {"premise": premise, "hypothesis": hypothesis, "label": _label(fields)}, f"{premise} {hypothesis}"


def _tagged_tokens(fields: Fields) -> Content:
    tokens, tags = list_of(fields, "tokens"), list_of(fields, "tags")
    if len(tokens) != len(tags):
        raise RowFault(f"has {len(tokens)} tokens and {len(tags)} tags; each token needs one")
    wrong = [shown(token) for token in tokens if not isinstance(token, str) or not token.strip()]
    if wrong:
        raise RowFault(f"tokens must be words, one is {wrong[0]}")
    names = [label_name(tag) for tag in tags]
    return {"tokens": tokens, "tags": names}, " ".join(tokens)


def _question_answering(fields: Fields) -> Content:
    question, context = text_of(fields, "question"), text_of(fields, "context")
    answers = value_of(fields, "answers")
    texts, starts = (answers.get(name) if isinstance(answers, dict) else None for name in ("text", "answer_start"))
    if not isinstance(texts, list) or not isinstance(starts, list) or not texts or len(texts) != len(starts):
        raise RowFault(f"answers must be {{text: [...], answer_start: [...]}} with at least one, is {shown(answers)}")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip() or not isinstance(start, int) or start < 0:
            raise RowFault(
                f"an answer must have a text and a place in the context, has {shown(text)} at {shown(start)}"
            )
        if context[start : start + len(text)] != text:
            raise RowFault(f"the context has {shown(context[start : start + len(text)])} at {start}, not {shown(text)}")
    columns = {"question": question, "context": context, "answers": {"text": texts, "answer_start": starts}}
    return columns, context  # questions about one text stay together


def _label(fields: Fields) -> Any:
    label = value_of(fields, "label")
    if label is None or isinstance(label, list | dict) or label == "":
        raise RowFault(f"label must be a name or a number, is {shown(label)}")
    return label


LABELLED_COLUMNS: dict[str, tuple[str, ...]] = {
    "question_answering": ("question", "context", "answers"),
    "tagged_tokens": ("tokens", "tags"),
    "labelled_pair": ("premise", "hypothesis", "label"),
    "labelled_text": ("text", "label"),
}
"""Columns of each format."""

SAID = ("label", "tags", "answers")
"""Of these columns, those that a model is to say."""

READ_LABELLED: dict[str, Callable[[Fields], Content]] = {
    "question_answering": _question_answering,
    "tagged_tokens": _tagged_tokens,
    "labelled_pair": _labelled_pair,
    "labelled_text": _labelled_text,
}
