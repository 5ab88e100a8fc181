"""How the answers to a few dev prompts changed while the run went on (`evaluate.samples`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ghosttune.reports.markup import Markup, joined, said, table, tag
from ghosttune.reports.reading import RunNumbers

SAME = "the same"


def sampled_answers(numbers: RunNumbers) -> Markup:
    """A card per prompt: what was asked, then the answer at each evaluation; nothing for a run without samples."""
    events = [event for event in numbers.events if event["event"] == "samples"]
    if not events:
        return Markup("")
    asked = {one["example_id"]: one for event in events for one in event.get("asked", ())}
    answers: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for event in events:
        for answer in event["answers"]:
            answers.setdefault(answer["example_id"], []).append((event["step"], answer))
    note = "The same dev prompts at every evaluation, drawn at random; step 0 is before the first update."
    return joined([tag("p", note), *(_card(name, asked.get(name, {}), own) for name, own in answers.items())])


def _card(example_id: str, asked: Mapping[str, Any], answers: Sequence[tuple[int, Mapping[str, Any]]]) -> Markup:
    texts = {"prompt": asked.get("prompt", ""), "references": "\n".join(asked.get("references", ()))}
    rows, before = [], None
    for step, answer in answers:
        rows.append([step, tag("span", SAME, class_="soft") if answer == before else said(_text(answer))])
        before = answer
    return tag(
        "div",
        tag("h5", example_id),
        tag("dl", *(joined([tag("dt", name), tag("dd", said(text))]) for name, text in texts.items() if text)),
        table(["step", "answer"], rows),
        class_="card",
    )


def _text(answer: Mapping[str, Any]) -> str:
    output = answer["output"]
    text = output if isinstance(output, str) else str(output)
    return text if answer.get("stopped", True) else f"{text} … (did not stop)"
