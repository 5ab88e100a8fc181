"""A smoke alarm for answers that are no answers: too short, repeating, echoing the prompt, never ending."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ghosttune.metrics.intervals import share

FEWEST_CHARACTERS, FEWEST_WORDS = 5, 3
REPEATED_WORDS, REPETITIONS = 3, 4
"""So many words in a row that stand so many times in an answer."""
LONG = 40
"""Characters from which an answer that stands in the prompt is an echo."""
ALARM = 0.05
"""Share of degenerate answers from which the alarm is raised."""
EXAMPLES = 3


def is_ok(text: str) -> bool:
    """At least 5 characters, more than 2 words, and something alphanumeric."""
    stripped = text.strip()
    return (
        len(stripped) >= FEWEST_CHARACTERS
        and len(stripped.split()) >= FEWEST_WORDS
        and any(letter.isalnum() for letter in stripped)
    )


def faults(output: str, prompt: str, references: Sequence[str], stopped: bool) -> list[str]:
    """What is wrong with an answer: `short`, `repeats`, `echoes the prompt`, `never stops`.

    Short counts only where every reference is longer; a label or a number is not degenerate. Nor is a repetition or a
    quotation that a reference has as well.
    """
    found = []
    if not is_ok(output) and all(is_ok(reference) for reference in references):
        found.append("short")
    if repeats(output) and not any(repeats(reference) for reference in references):
        found.append("repeats")
    if echoes(output, prompt) and not any(echoes(reference, prompt) for reference in references):
        found.append("echoes the prompt")
    if not stopped:
        found.append("never stops")
    return found


def repeats(text: str) -> bool:
    """Whether the same three words in a row, or the same line, stand there four times."""
    words = text.lower().split()
    runs = Counter(tuple(words[at : at + REPEATED_WORDS]) for at in range(len(words) - REPEATED_WORDS + 1))
    lines = Counter(line.strip() for line in text.splitlines() if line.strip())
    return max([*runs.values(), *lines.values()], default=0) >= REPETITIONS


def echoes(text: str, prompt: str) -> bool:
    """Whether the answer begins with 40 characters of the prompt, or is the whole prompt."""
    said, asked = " ".join(text.split()), " ".join(prompt.split())
    return bool(said) and (said == asked or (len(said) >= LONG and said[:LONG] in asked))


def alarm(rows: Sequence[tuple[str, list[str]]]) -> dict[str, Any]:
    """Share of degenerate answers with its interval, the count of each fault, and examples, from (id, faults) rows."""
    counts = Counter(fault for _, found in rows for fault in found)
    bad = [bool(found) for _, found in rows]
    rate = share(bad)
    examples = [{"example_id": name, "faults": found} for name, found in rows if found][:EXAMPLES]
    return {"share": rate.as_dict(), "alarm": rate.value >= ALARM, "faults": dict(counts), "examples": examples}
