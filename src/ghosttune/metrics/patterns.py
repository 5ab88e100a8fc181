"""Answers that are right by their form: a regular expression beside each row."""

from __future__ import annotations

import re

from ghosttune.errors import DataError
from ghosttune.metrics.scoring import Corpus, Item, Metric, Score, of_hits
from ghosttune.registry import METRICS


@METRICS.register("regex_match", Metric("share of questions", "own; Python's re.fullmatch"))
def regex_match(corpus: Corpus) -> Score:
    """The whole answer matches the regular expression in the row's column `pattern`, blanks at the ends aside."""
    return of_hits([_pattern(item).fullmatch(item.output.strip()) is not None for item in corpus.items])


def _pattern(item: Item) -> re.Pattern[str]:
    """What the answer must be; a point is any character, line breaks too. DataError where the row does not say."""
    text = item.metadata.get("pattern")
    if not isinstance(text, str):
        raise DataError("regex_match needs a column `pattern` with a regular expression in every row, and one has none")
    try:
        return re.compile(text, re.DOTALL)
    except re.error as error:
        raise DataError(f"regex_match: the pattern {text!r:.80} is no regular expression: {error}") from error
