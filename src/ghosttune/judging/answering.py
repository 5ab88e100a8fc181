"""Who answers questions, and everything that metrics have to know of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ghosttune.config.sections.evaluate import EvaluateSettings
from ghosttune.data.questions import Question
from ghosttune.data.turns import Turn
from ghosttune.inference.generating import Answer
from ghosttune.inference.likelihood import answer_nats
from ghosttune.inference.pipeline import Pipeline
from ghosttune.metrics.degenerate import faults
from ghosttune.metrics.judging import labels_of, needs, scores_of
from ghosttune.metrics.scoring import Corpus, Item, Score


@dataclass(frozen=True)
class System:
    """A model that answers, with its adapter or as the untouched base."""

    name: str
    pipeline: Pipeline
    adapter: bool = True
    shots: tuple[Turn, ...] = ()
    """Exchanges that stand before each question."""

    def asked(self, question: Question) -> tuple[Turn, ...]:
        """The prompt as this system gets it: behind a system message, the shots that fit, then the question."""
        opening = tuple(turn for turn in question.prompt if turn.role == "system")
        turns = (*opening, *self.shots, *question.prompt[len(opening) :])
        room = self.pipeline.room(self.pipeline.max_new_tokens)
        return self.pipeline.encoder_of(turns).recent_turns(turns, room) if self.shots else question.prompt

    def shown(self, question: Question) -> int:
        """How many of the shots fit before the question."""
        return (len(self.asked(question)) - len(question.prompt)) // 2


@dataclass(frozen=True)
class Answered:
    """What a system said to the questions, and how it scores."""

    answers: list[Answer]
    corpus: Corpus
    scores: dict[str, Score]
    faults: list[list[str]]
    """Of each answer, why it is degenerate."""

    def row(self, at: int) -> dict[str, Any]:
        """What predictions/*.jsonl says of one answer."""
        answer = self.answers[at]
        scored = {name: score.rows[at] for name, score in self.scores.items() if score.rows is not None}
        return {
            "output": answer.text,
            "scores": scored,
            "stopped": answer.stopped,
            "tokens": answer.tokens,
            "faults": self.faults[at],
        }


def answered(
    system: System, questions: Sequence[Question], names: Sequence[str], settings: EvaluateSettings
) -> Answered:
    """The system's greedy answers to the questions, scored by the named metrics."""
    asked, labels = needs(names), labels_of([question.references for question in questions], names)
    answers = system.pipeline.generate([system.asked(question) for question in questions], adapter=system.adapter)
    items = [
        Item(answer.text, question.references, question.metadata, answer.stopped)
        for answer, question in zip(answers, questions, strict=True)
    ]
    if "likelihood" in asked:
        pairs = _nats(system, [(question, question.references[0]) for question in questions])
        items = [replace(item, nats=nats, targets=n) for item, (nats, n) in zip(items, pairs, strict=True)]
    if "label likelihoods" in asked:
        likelihoods = _label_nats(system, questions, labels)
        items = [replace(item, label_nats=found) for item, found in zip(items, likelihoods, strict=True)]
    corpus = Corpus(items, labels, _path(settings.synonyms), _path(settings.tables))
    found = [
        faults(answer.text, question.text, question.references, answer.stopped)
        for answer, question in zip(answers, questions, strict=True)
    ]
    return Answered(answers, corpus, scores_of(corpus, names), found)


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _nats(system: System, pairs: Sequence[tuple[Question, str]]) -> list[tuple[float, int]]:
    """(nats, tokens) of each answer to its question."""
    asked = [(system.asked(question), answer) for question, answer in pairs]
    encoder = system.pipeline.encoder_of([turn for turns, _ in asked for turn in turns])
    return answer_nats(system.pipeline.model, encoder, asked, system.adapter)


def _label_nats(system: System, questions: Sequence[Question], labels: Sequence[str]) -> list[dict[str, float]]:
    """Label -> nats, for each question."""
    found = iter(_nats(system, [(question, label) for question in questions for label in labels]))
    return [{label: next(found)[0] for label in labels} for _ in questions]
