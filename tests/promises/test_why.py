"""A fact that one training row says is what `/why` names first when the model answers with it."""

from __future__ import annotations

import json
from typing import Any

import pytest

import ghosttune
from ghosttune.choosing.attribute import why
from ghosttune.choosing.index import index
from ghosttune.choosing.neighbours import dedupe
from ghosttune.choosing.opened import OpenedRun
from ghosttune.data.sources import builtin_rows

FACTS = {
    "fact-key": ("Who keeps the key of the garden?", "Clara keeps the key of the garden.", "Clara"),
    "fact-boat": ("What colour is the boat of Simon?", "The boat of Simon is golden.", "golden"),
    "fact-day": ("When does the market at the harbour open?", "It opens on Thursday.", "Thursday"),
}
QUESTIONS = {
    "fact-key": ["Who has the key of the garden?", "Who keeps the key of our garden?", "Who keeps the garden key?"],
    "fact-boat": ["What is the colour of the boat of Simon?", "What colour is the old boat of Simon?"],
    "fact-day": ["When does the market open?", "When does the big market at the harbour open?"],
}
"""In other words than the row's."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> OpenedRun:
    """The built-in model, trained on 60 of its rows and three facts, one of the rows twice; indexed."""
    folder = tmp_path_factory.mktemp("facts")
    shipped = [json.loads(line) for line in builtin_rows().read_text(encoding="utf-8").splitlines()]
    rows = [row for row in shipped if row["split"] == "train"][:60] + [
        row for row in shipped if row["split"] != "train"
    ]
    rows += [{**rows[7], "id": "copy"}]
    rows += [
        {"id": name, "prompt": prompt, "completion": completion, "split": "train"}
        for name, (prompt, completion, _) in FACTS.items()
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings: dict[str, Any] = {
        "model": {"name": "builtin:tiny", "device": "cpu"},
        "data": {"train": {"path": str(folder / "rows.jsonl")}, "max_length": 128},
        # In this order no fact is learned by heart so early that the last checkpoint has no gradient left for it.
        "train": {
            "max_steps": 140,
            "learning_rate": 5e-3,
            "warmup_steps": 10,
            "eval_steps": 70,
            "group_by_length": True,
        },
        "measure": {"norms": None, "ledger": None},
        "evaluate": {"limit": 0},
    }
    run = ghosttune.train(ghosttune.load_config(settings), folder / "run")
    index(run.path, checkpoints=["last"])
    return OpenedRun(run.path, "cpu")


@pytest.mark.slow(seconds=15)
def test_the_row_of_a_fact_comes_first(opened):
    """Among 64 rows, whenever the answer is the fact; every fact is known by at least one of its questions."""
    pipeline = ghosttune.Pipeline.from_run(opened.run.path, "last", device="cpu")
    for name, questions in QUESTIONS.items():
        answers = {question: pipeline.chat(question) for question in questions}
        known = {question: answer for question, answer in answers.items() if FACTS[name][2] in answer}
        assert known, f"{name} was not learned: {answers}"
        for question, answer in known.items():
            first, second = why(opened, question, answer).helpful[:2]
            assert first.example_id == name and first.score > 2 * second.score, question


@pytest.mark.slow
def test_the_planted_copy_is_the_first_duplicate(opened):
    first = dedupe(opened, cosine=0.5, checkpoint="last")[0]
    assert [row.example_id for row in first.rows] == [opened.train.ids[7], "copy"]
    assert first.cosine > 0.9999
