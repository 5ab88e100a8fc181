"""Files of a run that hold something else than a run writes: named with what is wrong, never taken for right."""

from __future__ import annotations

import json

import pytest

from ghosttune.errors import RunError
from ghosttune.reports.reading import RunNumbers
from ghosttune.run.directory import RunDir
from ghosttune.stages.runs import open_run
from ghosttune.workflows.report import report

DEEP = b"[" * 100_000
RAW = {
    "nothing": b"",
    "a list": b"[]",
    "a number": b"5",
    "not UTF-8": b"\xff\xfe\x00",
    "deep": DEEP,
    "long number": b'{"step": ' + b"1" * 5000 + b"}",
}

RECORD = {
    "verdict without its losses": ({"verdict": {}}, "verdict.verdict: Field required"),
    "no verdict": ({"verdict": None}, "the run is finished and has no verdict"),
    "unknown status": ({"status": "done"}, "status: Input should be 'running'"),
    "list of stages": ({"stage_seconds": []}, "stage_seconds: "),
    "text for a step": ({"step": "../../x"}, "step: "),
    "step below zero": ({"step": -1}, "step: "),
    "no model": ({"model": None}, "model: it is no object"),
    "counts that are texts": ({"data": {"fingerprints": {}, "rows": {"train": "x"}}}, "data.rows.train: "),
    "list of accounts": ({"ledger": [1]}, "ledger: "),
    "environment that is a number": ({"environment": 5}, "environment: it is no object"),
    "memory that is a text": ({"peak_memory_mb": {"process": "much"}}, "peak_memory_mb.process: "),
}

LINES = {
    "nothing in it": ("{}", "step: Field required"),
    "a list": ("[1]", "it is no object"),
    "text for a step": ('{"step": "x", "event": "log"}', "step: "),
    "evaluation of nothing": ('{"step": 1, "event": "eval", "loss": 1.0}', "split is missing"),
    "phase of nothing": ('{"step": 1, "event": "phase"}', "trains is missing"),
    "text for a loss": ('{"step": 1, "event": "log", "loss": "low"}', "loss: "),
    "not UTF-8": (b'{"step": 1, "event": "\xff"}', "can't decode"),
    "deep": (DEEP, "it is nested too deeply"),
}

EVALUATION = {
    "a score without an interval": ({"dev": {"adapter": {"chrf": {"value": 1.0}}}}, "low: Field required"),
    "a score that is a text": ({"dev": {"adapter": {"chrf": {"value": "1", "low": 0, "high": 1, "n": 1}}}}, "value: "),
    "an alarm that is a number": ({"dev": {"degenerate": {"adapter": 5}}}, "it is no object"),
}


def refused(copied, words: str) -> None:
    """Whoever reads it says so: Python, and the page."""
    run = open_run(copied)
    for read in (lambda: (run.record, run.events, run.evaluation, run.predictions), lambda: report(copied)):
        with pytest.raises(RunError, match="is damaged") as found:
            read()
        assert words in str(found.value) and len(str(found.value)) < 1000


@pytest.mark.parametrize("text", RAW.values(), ids=RAW)
@pytest.mark.parametrize("name", ["run.json", "evaluation.json"])
def test_a_file_that_is_no_object(copied, name, text):
    (copied / name).write_bytes(text)
    refused(copied, name)


@pytest.mark.parametrize(("change", "words"), RECORD.values(), ids=RECORD)
def test_a_record_with_something_else_in_it(copied, change, words):
    (copied / "run.json").write_text(json.dumps(RunDir(copied).read_record() | change))
    refused(copied, f"run.json is damaged: {words}")


@pytest.mark.parametrize(("line", "words"), LINES.values(), ids=LINES)
def test_an_event_that_is_none(copied, line, words):
    with open(copied / "metrics.jsonl", "ab") as file:
        file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")
    refused(copied, words)


@pytest.mark.parametrize(("contents", "words"), EVALUATION.values(), ids=EVALUATION)
def test_an_evaluation_that_is_none(copied, contents, words):
    (copied / "evaluation.json").write_text(json.dumps(contents))
    refused(copied, words)


def test_answers_that_are_none(copied):
    for line in ("5", "{}", '{"example_id": 1}', '{"example_id": "1", "scores": []}'):
        (copied / "predictions" / "dev.jsonl").write_text(line + "\n")
        with pytest.raises(RunError, match=r"dev\.jsonl:1 is damaged"):
            RunNumbers(RunDir(copied)).predictions("dev")


def test_what_a_run_wrote_is_none_of_it(copied):
    run = open_run(copied)
    assert run.record["verdict"] and run.events and run.evaluation and run.predictions
