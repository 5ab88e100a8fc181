"""Scores equal what whole gradients, one backward pass per row, give; the query's own row comes first."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from ghosttune.choosing.attribute import attribute, scored, why
from ghosttune.data.records import Turn
from ghosttune.errors import InputError

STEPS = (3, 6)


@pytest.fixture(scope="module")
def rates(indexed) -> dict[int, float]:
    """The learning rate that was logged at each checkpoint."""
    events = [json.loads(line) for line in (indexed / "metrics.jsonl").read_text().splitlines()]
    return {event["step"]: event["learning_rate"] for event in events if event["event"] == "log"}


def solved(rows, query, added):
    """The query over the rows' mean squares in the eigenvectors of both sides, and the damping."""
    outer = torch.linalg.eigh(torch.einsum("noi,npi->op", rows, rows)).eigenvectors
    inner = torch.linalg.eigh(torch.einsum("noi,noj->ij", rows, rows)).eigenvectors
    squares = (outer.mT @ rows @ inner).square().mean(0)
    return outer @ (outer.mT @ query @ inner / (squares + added)) @ inner.mT


def expected(opened, slow_row, by, step):
    """[rows] by definition, in float64, from whole gradients."""
    guide = opened.prepared.guide.features
    query = slow_row(guide, step) / sum(row.targets for row in guide)
    rows = torch.stack([slow_row([row], step) for row in opened.train.features])
    if by == "adamw":
        state = load_file(opened.run.checkpoint(step) / "optimizer.safetensors")
        names = sorted(opened.parameters)
        second = torch.cat([state[f"{name}|exp_avg_sq"].double().flatten() for name in names])
        corrected = second / (1 - 0.999**step)
        query = torch.where(second > 0, query / (corrected.sqrt() + 1e-8), 0.0)
    if by == "preconditioned":
        parameters = [parameter for _, parameter in sorted(opened.parameters.items())]
        sizes = [parameter.numel() for parameter in parameters]
        parts = zip(parameters, rows.split(sizes, 1), query.split(sizes), strict=True)
        added = 0.3 * rows.square().mean()
        solutions = [solved(own.unflatten(1, p.shape), asked.view(p.shape), added) for p, own, asked in parts]
        query = torch.cat([solution.flatten() for solution in solutions])
    if by == "cosine":
        return torch.cosine_similarity(rows, query.unsqueeze(0))
    return rows @ query


@pytest.mark.parametrize("by", ["dot", "cosine", "adamw", "preconditioned"])
def test_scores_equal_their_definition(opened, slow_row, by):
    found = scored(opened, opened.train, opened.prepared.guide.features, [6], by)
    exact = expected(opened, slow_row, by, 6)
    torch.testing.assert_close(found.scores.double(), exact, rtol=2e-3, atol=1e-4 * float(exact.abs().max()))
    assert not found.errors.any()


@pytest.mark.parametrize("by", ["dot", "cosine"])
def test_several_checkpoints_are_weighted_by_their_learning_rate(opened, slow_row, rates, by):
    found = scored(opened, opened.train, opened.prepared.guide.features, list(STEPS), by)
    total = sum(rates[step] for step in STEPS)
    exact = sum(rates[step] / total * expected(opened, slow_row, by, step) for step in STEPS)
    torch.testing.assert_close(found.scores.double(), exact, rtol=2e-3, atol=1e-4 * float(exact.abs().max()))


def test_of_preconditioned_all_checkpoints_count_alike(opened, slow_row):
    """Also one at which the learning rate had come to 0, as at the end of training."""
    found = scored(opened, opened.train, opened.prepared.guide.features, list(STEPS), "preconditioned")
    exact = sum(expected(opened, slow_row, "preconditioned", step) for step in STEPS) / len(STEPS)
    torch.testing.assert_close(found.scores.double(), exact, rtol=2e-3, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("by", ["cosine", "preconditioned"])
@pytest.mark.parametrize("checkpoints", [["best"], ["all"], ["3"]])
def test_the_row_itself_and_its_copies_come_first(opened, by, checkpoints):
    record = opened.train.record("row-5")
    asked = {"prompt": record.prompt[0].content, "completion": record.reference}
    found = attribute(opened, **asked, by=by, checkpoints=checkpoints, top=4)
    assert {row.example_id for row in found.helpful[:3]} == {"row-5", "copy-a", "copy-b"}
    assert found.helpful[0].score > 1.2 * found.helpful[3].score


def test_what_is_said_of_a_row(opened):
    found = attribute(opened, prompt="Say red number 7", completion="red red 7", top=3)
    assert (found.by, found.checkpoints, found.query_rows, found.rows) == ("cosine", [6], 1, 27)
    scores = [row.score for row in found.helpful]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True) and scores[-1] > 0
    assert [row.score for row in found.harmful] == sorted(row.score for row in found.harmful)
    assert all(row.score < 0 for row in found.harmful)
    first = found.helpful[0]
    assert first.content["prompt"].startswith("Say ") and first.metadata["kind"] in ("even", "odd")


def test_a_query_file_is_its_mean(opened, tmp_path):
    record = opened.train.record("row-5")
    row = {"prompt": record.prompt[0].content, "completion": record.reference}
    (tmp_path / "query.jsonl").write_text("".join(json.dumps({**row, "id": str(n)}) + "\n" for n in range(2)))
    twice = attribute(opened, tmp_path / "query.jsonl", by="dot")
    once = attribute(opened, **row, by="dot")
    assert twice.query_rows == 2
    assert [row.example_id for row in twice.helpful] == [row.example_id for row in once.helpful]
    assert [row.score for row in twice.helpful] == pytest.approx([row.score for row in once.helpful], rel=1e-4)


def test_why_takes_a_run_a_path_or_a_conversation(opened, indexed):
    record = opened.train.record("row-9")
    words = record.prompt[0].content
    answers = [
        why(indexed, words, record.reference),
        why(opened, [Turn("user", words)], record.reference),
    ]
    assert answers[0].helpful[0].example_id == answers[1].helpful[0].example_id == "row-9"
    assert len(answers[0].helpful) == 5
    said = [Turn("user", "Say blue"), Turn("assistant", "blue"), Turn("user", words)]
    assert why(opened, said, record.reference).helpful[0].score < answers[0].helpful[0].score


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "give either a query file, or a prompt and its completion"),
        ({"prompt": "a"}, "give either"),
        ({"prompt": "a", "completion": "b", "query": "x.jsonl"}, "give either"),
        ({"prompt": "a", "completion": " "}, "the completion is empty"),
        ({"prompt": "a", "completion": "b", "by": "bm25"}, "cannot be scored by 'bm25'; known are cosine, dot"),
        ({"prompt": "a", "completion": "b", "by": "preconditioned", "damping": 0.0}, "damping is 0.0; it must be"),
        ({"prompt": "a", "completion": "b", "damping": 0.1}, "--damping does nothing for --by cosine"),
        ({"prompt": "a", "completion": "b", "by": "adamw", "damping": 0.5}, "--damping does nothing for --by adamw"),
        ({"prompt": "a", "completion": "b", "checkpoints": ["9"]}, "no checkpoint 9"),
        ({"query": "/nowhere/x.jsonl"}, "does not exist"),
    ],
)
def test_wrong_questions(opened, asked, message):
    with pytest.raises(InputError, match=message):
        attribute(opened, **asked)


def test_a_talk_says_why(indexed, opened, capsys):
    from ghosttune.cli.talking import Talk
    from ghosttune.inference.chatting import Conversation
    from ghosttune.inference.pipeline import Pipeline

    record = opened.train.record("row-9")
    talk = Talk(Pipeline.from_run(indexed, device="cpu"), str(indexed), Conversation(max_new_tokens=4), "cpu")
    with pytest.raises(InputError, match="nothing has been said yet"):
        talk.hear("/why")
    talk.conversation = talk.conversation.answered(record.prompt[0].content, record.reference)
    talk.hear("/why 2")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "27 rows by cosine at step 6, query of 1 rows"
    assert lines[1].startswith("helpful  +1  row-9  Say blue") and lines[1].endswith("(kind: odd)")
    assert sum(line.startswith("helpful") for line in lines) == 2
    with pytest.raises(InputError, match="/why takes a number of rows, got 'x'"):
        talk.hear("/why x")
    talk.conversation = talk.conversation.answered("please " * 80, "blue")  # no longer fits into data.max_length
    talk.hear("/why 1")
