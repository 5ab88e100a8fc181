"""Runs on streamed rows: those that whole rows in the same order give, resumed, shared by processes, or refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupting import interrupt_at, kill, start, wait_for_step
from test_several_processes import columns, command, compare
from typer.testing import CliRunner

from ghosttune import train
from ghosttune.choosing.opened import OpenedRun
from ghosttune.cli.main import app
from ghosttune.config.loading import load_config
from ghosttune.config.rendering import plain_yaml
from ghosttune.config.schema import RunConfig
from ghosttune.data import streaming
from ghosttune.errors import ConfigError, DataError, RunError
from ghosttune.proving.freezing import differences
from ghosttune.proving.specimens import short_run
from ghosttune.run.directory import RunDir, read_csv
from ghosttune.run.tables import read_table
from ghosttune.stages.prepare import Prepared
from ghosttune.training.order import RowOrder
from ghosttune.workflows.check import check
from ghosttune.workflows.train import Stopped, resume

ROWS, STEPS, BATCH = (9, 14, 19), 16, 4
FULL = {
    "data__train__streaming": True,
    "data__train__shuffle_buffer": 10,
    "data__max_length": 128,
    "train__max_steps": STEPS,
    "train__per_device_train_batch_size": 2,
    "train__gradient_accumulation_steps": 2,
    "train__eval_steps": 5,
    "train__save_steps": 3,
    "train__save_total_limit": 2,
    "method__lora_dropout": 0.1,
    "measure__norms__every": 1,
    "measure__ledger__guide_every": 3,
}
"""64 rows of 42, in windows that end inside of steps."""


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(name: str, n: int) -> dict[str, Any]:
    return {"prompt": f"Say {name} {'please ' * (n % 5)}{n}", "completion": f"{n} " * (1 + n % 3), "kind": n % 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of three shards, dev rows and guide rows."""
    folder = tmp_path_factory.mktemp("data")
    for shard, count in enumerate(ROWS):
        write(folder / f"part-{shard}.jsonl", [row(f"part {shard}", n) for n in range(count)])
    for name in ("dev", "guide"):
        write(folder / f"{name}.jsonl", [row(name, n) for n in range(6)])
    return folder


@pytest.fixture(scope="module")
def configured(tiny_model, data):
    """Configurations of runs on these shards."""
    judges = {"data__dev__path": str(data / "dev.jsonl"), "data__guide__path": str(data / "guide.jsonl")}
    return partial(short_run, tiny_model, data / "part-*.jsonl", **FULL | judges)


@pytest.fixture(scope="module")
def whole(configured, tmp_path_factory) -> RunDir:
    """A run that nothing interrupted."""
    return train(configured(), tmp_path_factory.mktemp("whole") / "run").folder


class Given(RowOrder):
    """Row positions as they are given."""

    def __init__(self, places: list[int], size: int):
        super().__init__([0] * len(places), size, 0)
        self.given = places

    def __iter__(self):
        return iter(self.given)


def test_it_is_the_run_that_whole_rows_give_in_that_order(configured, whole, data, tmp_path, monkeypatch):
    """The reference reads the shards as sources of a mixture, and is told the order."""
    drawn = read_table(whole, "drawn", ["step", "example_id"]).to_pydict()
    assert drawn["step"] == [step for step in range(1, STEPS + 1) for _ in range(BATCH)]

    def told(prepared: Prepared) -> RowOrder:
        places = {row.example_id.partition("/")[2]: n for n, row in enumerate(prepared.train.features)}
        return Given([places[name] for name in drawn["example_id"]], BATCH)

    sources = {f"s{n}": {"path": str(data / f"part-{n}.jsonl")} for n in range(len(ROWS))}
    off = {"data__train__streaming": False, "data__train__shuffle_buffer": 10_000, "data__train__path": None}
    monkeypatch.setattr(Prepared, "order_of_training", told)
    other = train(configured(**off, data__train__sources=sources), tmp_path / "run").folder
    for name in ("ledger", "values", "norms", "module_steps"):
        own, expected = read_table(whole, name).to_pydict(), read_table(other, name).to_pydict()
        if "example_id" in expected:
            expected["example_id"] = [example_id.partition("/")[2] for example_id in expected["example_id"]]
            expected.pop("source", None)
        if name == "values":  # of the reference in the order of the data, and of all of its rows
            own, expected = by_id(own), {key: row for key, row in by_id(expected).items() if row["steps_seen"]}
        assert own == expected, name
    said, whole_said = other.read_record()["verdict"], whole.read_record()["verdict"]
    assert whole_said["dev_loss"] == said["dev_loss"] and whole_said["change"] == said["change"]


def by_id(table: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    rows = [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
    return {row["example_id"]: row for row in rows}


def test_the_rows_of_a_pass_come_once_before_any_comes_again(whole):
    ids = read_table(whole, "drawn", ["example_id"]).to_pydict()["example_id"]
    first, count = ids[: sum(ROWS)], sum(ROWS)
    assert len(ids) == STEPS * BATCH and abs(len(set(first)) - count) <= BATCH - 1  # a step may hold rows of two passes
    assert len(set(ids)) == count


def test_its_record_and_exports_name_the_rows_that_were_read(whole):
    record = whole.read_record()
    assert record["data"]["rows"] == {"train": sum(ROWS), "dev": 6, "guide": 6}
    assert [name for name in record["data"]["fingerprints"] if name.endswith(", 3 shards")]
    splits = [line["split"] for line in read_csv(whole.splits)]
    assert splits == ["train"] * sum(ROWS) + ["dev"] * 6 + ["guide"] * 6
    values = read_table(whole, "values").to_pydict()
    assert set(values["kind"]) == {0, 1} and sum(values["steps_seen"]) == STEPS * BATCH


@pytest.mark.parametrize("step", [1, 6, 11, 15])
def test_interrupted_and_resumed_is_bit_identical(configured, whole, tmp_path, step):
    with pytest.raises(Stopped):
        train(configured(), tmp_path / "parts", listen=interrupt_at(step))
    resume(tmp_path / "parts")
    assert differences(whole.path, tmp_path / "parts") == []


def test_resuming_reads_the_shards_from_where_it_stopped(configured, tmp_path, monkeypatch):
    with pytest.raises(Stopped):
        train(configured(), tmp_path / "parts", listen=interrupt_at(9))
    read, real = [], streaming.FileShards.rows
    monkeypatch.setattr(streaming.FileShards, "rows", lambda *given: read.append(given[1:3]) or real(*given))
    begins = RunDir(tmp_path / "parts").checkpoint_steps()[-1] * BATCH // 10 * 10  # a window of its first pass
    resume(tmp_path / "parts")
    order = streaming._drawn(3, 42, "shards", 0).tolist()
    ends = np.cumsum([ROWS[shard] for shard in order]).tolist()
    place = next(place for place, end in enumerate(ends) if begins < end)
    first = [order[place], begins - ends[place] + ROWS[order[place]]]
    prepared = next(n for n, (shard, offset) in enumerate(read) if [shard, offset] == first)
    assert place > 0 and all(shard in order[:2] for shard, _ in read[:prepared])  # what decides format and template
    assert [shard for shard, _ in read[prepared : prepared + 3 - place]] == order[place:]


@pytest.mark.slow(seconds=25)
def test_killed_and_resumed_is_bit_identical(configured, whole, tmp_path):
    (tmp_path / "run.yaml").write_text(plain_yaml(configured()))
    process = start(tmp_path / "run.yaml", "--out", tmp_path / "killed")
    wait_for_step(7, tmp_path / "killed", process)
    kill(process)
    assert RunDir(tmp_path / "killed").read_record()["status"] == "running"
    assert RunDir(tmp_path / "killed").checkpoint_steps()
    resume(tmp_path / "killed")
    assert differences(whole.path, tmp_path / "killed") == []


@pytest.mark.slow(seconds=20)
def test_two_processes_give_what_one_gives(two_processes, configured, tmp_path):
    """Ids and counts are the same, numbers but for the order of float32 sums."""
    plain = {"method__lora_dropout": 0.0, "train__max_steps": 9, "measure__norms__effective": 2}
    one = train(configured(**plain, train__per_device_train_batch_size=4), tmp_path / "one").folder
    (tmp_path / "two.yaml").write_text(plain_yaml(configured(**plain)))
    done = command("train", str(tmp_path / "two.yaml"), "--out", str(tmp_path / "two"), "--processes", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    two = RunDir(tmp_path / "two")
    compare(one, two)
    assert read_table(one, "drawn").equals(read_table(two, "drawn"))
    assert two.read_record()["data"] == one.read_record()["data"]


@pytest.mark.parametrize(
    "changes",
    [
        {"data__online_selection__by": "value", "data__online_selection__candidates": 3},
        {"train__packing": True, "method__lora_dropout": 0.0},
        {"phases__strategy": "early->late", "phases__boundaries": [3], "train__max_steps": 8},
    ],
    ids=["selection", "packing", "phases"],
)
def test_what_else_a_run_does_goes_on_after_an_interruption(configured, tmp_path, changes):
    """And begins where an update that was not saved had read ahead."""
    train(configured(**changes), tmp_path / "whole")
    with pytest.raises(Stopped):
        train(configured(**changes), tmp_path / "parts", listen=interrupt_at(4))
    resume(tmp_path / "parts")
    assert differences(tmp_path / "whole", tmp_path / "parts") == []
    whole = RunDir(tmp_path / "whole")
    if "phases__strategy" in changes:
        tokens = sum(int(phase["tokens"]) for phase in read_csv(whole.export("phases")))
        assert tokens == sum(read_table(whole, "drawn", ["tokens"]).to_pydict()["tokens"])


def test_windows_smaller_than_a_step_and_shards_smaller_than_both(configured, tmp_path, data):
    few = {"data__train__path": str(data / "part-0.jsonl"), "train__per_device_train_batch_size": 8}
    config = configured(
        **few, data__train__shuffle_buffer=2, train__max_steps=3, train__eval_steps=1, train__save_steps=1
    )
    train(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, tmp_path / "parts", listen=interrupt_at(1))
    resume(tmp_path / "parts")
    assert differences(tmp_path / "whole", tmp_path / "parts") == []
    seen = read_table(RunDir(tmp_path / "whole"), "drawn", ["example_id"]).to_pydict()["example_id"]
    assert len(seen) == 48 and len(set(seen)) == ROWS[0]


def later(folder: Path, bad: str) -> dict[str, Any]:
    """Two windows of rows, the second of which cannot all be used, of which `check` sees the first."""
    write(folder / "rows.jsonl", [row("later", n) for n in range(11)])
    with open(folder / "rows.jsonl", "a") as file:
        file.write(bad + "\n")
    return {"data__train__path": str(folder / "rows.jsonl"), "measure__ledger__guide_every": None}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"prompt": ', "rows.jsonl:12: not valid JSON"),
        ('{"prompt": "a"}', "rows.jsonl:12: has no column 'completion'"),
        (json.dumps(row("dev", 3)), "1 training rows ask the same as a dev row (rows-000011-"),
        (json.dumps({"prompt": "long", "completion": "word " * 200}), "1 of 2 rows do not fit into data.max_length"),
    ],
)
def test_a_row_that_cannot_be_used_ends_the_run_when_its_window_comes(configured, tmp_path, bad, said):
    config = configured(**later(tmp_path, bad), data__guide__path=None)
    report = check(config)
    assert not report.errors and "rows of the stream behind the first 10" in report.not_checked
    with pytest.raises(DataError) as caught:
        train(config, tmp_path / "run")
    assert said in str(caught.value)
    assert RunDir(tmp_path / "run").read_record()["status"] == "failed"


def test_shards_that_changed_do_not_go_on(configured, tmp_path, data):
    write(tmp_path / "rows.jsonl", [row("own", n) for n in range(30)])
    own = configured(data__train__path=str(tmp_path / "rows.jsonl"))
    with pytest.raises(Stopped):
        train(own, tmp_path / "run", listen=interrupt_at(4))
    write(tmp_path / "rows.jsonl", [row("other", n) for n in range(30)])
    with pytest.raises(DataError, match=r"rows\.jsonl, 1 shards changed since"):
        resume(tmp_path / "run")


def test_what_needs_all_rows_is_refused_and_a_shard_is_asked_instead(whole, data, tmp_path):
    opened = OpenedRun(whole.path)
    with pytest.raises(RunError, match="streamed its training rows and does not have them as a whole; name a file"):
        _ = opened.train
    result = CliRunner().invoke(app, ["index", str(whole.path)])
    assert result.exit_code == 1 and "with --data, such as one shard" in str(result.exception)
    shard = opened.rows(data / "part-1.jsonl")
    values = by_id(read_table(whole, "values").to_pydict())
    assert len(shard.ids) == ROWS[1] and set(shard.ids) <= values.keys()
    chosen = ["select", str(whole.path), "--by", "value", "--keep", "5", "--data", str(data / "part-1.jsonl")]
    result = CliRunner().invoke(app, [*chosen, "--out", str(tmp_path / "ids.jsonl")])
    assert result.exit_code == 0, result.output
    best = sorted(shard.ids, key=lambda name: -values[name]["standing"])[:5]
    assert {json.loads(line)["example_id"] for line in (tmp_path / "ids.jsonl").read_text().splitlines()} == set(best)


def test_report_and_evaluation_know_such_runs(whole):
    assert CliRunner().invoke(app, ["report", str(whole.path)]).exit_code == 0
    assert "because they were streamed" in (whole.report / "index.html").read_text(encoding="utf-8")
    assert CliRunner().invoke(app, ["evaluate", str(whole.path), "--limit", "2"]).exit_code == 0
    refused = CliRunner().invoke(app, ["evaluate", str(whole.path), "--split", "train"])
    assert refused.exit_code == 1 and "name a file of them with --data" in str(refused.exception)


STREAMED = {
    "data.train.path": "shards/*.jsonl",
    "data.train.streaming": True,
    "data.dev.path": "dev.jsonl",
    "data.guide.path": "guide.jsonl",
}


def problems(**changes: Any) -> dict[str, str]:
    """Setting -> what is wrong with it."""
    chosen = STREAMED | {name.replace("__", "."): value for name, value in changes.items()}
    try:
        load_config(overrides=[f"{name}={json.dumps(value)}" for name, value in chosen.items()])
    except ConfigError as error:
        return {problem.setting: problem.message for problem in error.problems}
    return {}


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("data.train.limit", 5, "draws a sample of all rows"),
        ("data.train.keep", "ids.txt", "chooses among all rows"),
        ("data.train.patch", "patch.jsonl", "names rows among all rows"),
        ("data.train.name", "dolly", "is for files and hub ids, and dolly is read whole"),
        ("data.train.sources", {"a": {"path": "a.jsonl"}}, "is for one source"),
        ("data.dev.fraction", 0.1, "sets a share of all rows aside; give data.dev.path"),
        ("data.dev.split", "dev", "is a split of all rows"),
        ("data.dev.path", None, "is missing: a stream has no rows to set aside"),
        ("data.guide.fraction", 0.1, "sets a share of all rows aside; give data.guide.path"),
        ("data.guide.split", "guide", "is a split of all rows"),
        ("data.guide.path", None, "is missing: a stream has no rows to set aside; give a file, or measure.ledger"),
        ("train.num_train_epochs", 2, "counts passes over rows whose number is not known; give train.max_steps"),
        ("train.group_by_length", True, "sorts rows that have not been read"),
        ("train.order", "length", "sorts rows that have not been read"),
        ("forget.run", "run", "needs all rows of the run before"),
        ("task.type", "grpo", "which asks of which row of the data an answer is"),
        ("task.type", "question_answering", "which makes several rows of one"),
    ],
)
def test_what_a_stream_cannot_do_is_refused_by_name(setting, value, said):
    assert problems() == {}
    elsewhere = {"data.train.name", "data.train.sources", "task.type"}
    found = problems(**{setting: value})
    assert said in found["data.train.streaming" if setting in elsewhere else setting], found


def test_without_a_ledger_no_guide_rows_are_asked_for():
    assert problems(data__guide__path=None, measure__ledger=None) == {}


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"type": "sequence_classification"}, "task.labels: is missing: the labels of a stream are not known"),
        ({"type": "preference", "loss": "dpo"}, "task.loss: asks the base about every row before the first update"),
    ],
)
def test_what_a_task_takes_from_all_rows_has_to_be_given(tmp_path, tiny_model, task, said):
    rows = {
        "sequence_classification": [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(12)],
        "preference": [{"prompt": f"p {n}", "chosen": "yes", "rejected": "no"} for n in range(12)],
    }[task["type"]]
    for name, some in (("part-0", rows[:8]), ("dev", rows[8:])):
        write(tmp_path / f"{name}.jsonl", some)
    config: RunConfig = short_run(
        tiny_model,
        tmp_path / "part-*.jsonl",
        data__train__streaming=True,
        data__max_length=64,
        data__dev__path=str(tmp_path / "dev.jsonl"),
        evaluate__limit=0,
        **{f"task__{name}": value for name, value in task.items()},
    )
    assert any(said in error for error in check(config).errors)


def test_a_classifier_whose_labels_are_given_streams(tmp_path, tiny_model):
    rows = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(14)]
    for name, some in (("part-0", rows[:5]), ("part-1", rows[5:10]), ("dev", rows[10:])):
        write(tmp_path / f"{name}.jsonl", some)
    run = train(
        short_run(
            tiny_model,
            tmp_path / "part-*.jsonl",
            data__train__streaming=True,
            data__train__shuffle_buffer=3,
            data__max_length=64,
            data__dev__path=str(tmp_path / "dev.jsonl"),
            task__type="sequence_classification",
            task__labels=["a", "b"],
        ),
        tmp_path / "run",
    )
    assert columns(run.folder, "drawn")["step"] == [step for step in range(1, 7) for _ in range(BATCH)]
