"""What the studio's calls answer, beside what the run directories and the commands say of the same."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import time
from pathlib import Path

import pytest
import yaml
from opened_studio import NASTY, TOKEN, Studio
from typer.testing import CliRunner

from ghosttune.choosing.clustering import cluster
from ghosttune.choosing.neighbours import dedupe
from ghosttune.choosing.select import select
from ghosttune.cli.main import app
from ghosttune.data.patching import read_patch
from ghosttune.data.records import Records, each_record
from ghosttune.errors import InputError
from ghosttune.inference.pipeline import Pipeline
from ghosttune.judging.compare import compare
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import read_table
from ghosttune.studio.folder import Folder
from ghosttune.studio.live import Follower
from ghosttune.studio.loop import control_of
from ghosttune.studio.rows import Asked, RowIndex
from ghosttune.studio.runs import state_of, table
from ghosttune.workflows.show import show


def test_the_table_says_what_the_runs_say(studio):
    (line,) = studio.get("runs")["runs"]
    record = json.loads((studio.folder / "first" / "run.json").read_text(encoding="utf-8"))
    assert (line["name"], line["state"], line["step"], line["max_steps"]) == ("first", "finished", 6, 6)
    assert line["verdict"] == record["verdict"]["verdict"] and line["dev_loss"] == record["verdict"]["dev_loss"]
    assert line["differs"] == {}


def test_runs_that_differ_are_told_apart_and_damaged_ones_named(studio):
    other = studio.folder / "deep" / "second"
    other.mkdir(parents=True)
    for name in ("run.json", "config.yaml"):
        text = (studio.folder / "first" / name).read_text(encoding="utf-8")
        (other / name).write_text(text.replace("max_steps: 6", "max_steps: 7"), encoding="utf-8")
    (studio.folder / "broken").mkdir()
    (studio.folder / "broken" / "run.json").write_text("{", encoding="utf-8")
    lines = {line["name"]: line for line in table(Folder(studio.folder))}
    assert lines["first"]["differs"] == {"train.max_steps": "6"}
    assert lines["deep/second"]["differs"] == {"train.max_steps": "7"}
    assert lines["broken"]["state"] == "unreadable" and "damaged" in lines["broken"]["error"]


def test_a_run_that_nobody_writes_has_crashed(studio):
    run = RunDir(studio.folder / "first")
    record = run.read_record() | {"status": "running"}
    assert state_of(run, record) == "crashed"
    with run.locked():
        assert state_of(run, record) == "running"
    assert state_of(run, record) == "crashed"


def test_a_stream_tells_what_the_file_holds_and_what_is_added(studio):
    run = RunDir(studio.folder / "first")
    follower = Follower(run)
    told = dict(follower.news())
    assert told["events"] == run.events() and told["state"]["state"] == "finished"
    assert len(told["norms"]["steps"]) == 6 and len(told["norms"]["values"]) == len(told["norms"]["layers"])
    assert list(follower.news()) == []
    with open(run.metrics, "a", encoding="utf-8") as file:
        file.write('{"step": 7, "event": "log", "loss": 1.0}\n{"step": 8, "ev')
    assert list(follower.news()) == [
        ("events", [{"step": 7, "event": "log", "loss": 1.0}]),
        ("state", {**told["state"], "step": 7}),
    ]
    run.metrics.write_bytes(run.metrics.read_bytes()[: run.metrics.stat().st_size - 12])
    run.forget_events_after(3)
    again = dict(follower.news())
    assert again["again"] is None and again["events"] == run.events()


def test_the_norms_by_layer_are_those_of_the_table(studio):
    run = RunDir(studio.folder / "first")
    told = dict(Follower(run).news())["norms"]
    rows = read_table(run, "norms").to_pylist()
    for layer, values in zip(told["layers"], told["values"], strict=True):
        for step, value in zip(told["steps"], values, strict=True):
            squares = [row["norm"] ** 2 for row in rows if (row["layer"], row["step"]) == (layer, step) and row["norm"]]
            assert value == pytest.approx(sum(squares) ** 0.5)


def test_a_stream_comes_over_http(studio):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", studio.port, timeout=30)
    connection.request("GET", f"/{TOKEN}/live?run=first")
    reply = connection.getresponse()
    assert reply.headers.get_content_type() == "text/event-stream"
    lines = [reply.readline().decode() for _ in range(4)]
    assert lines[0] == "event: events\n" and json.loads(lines[1].removeprefix("data: "))[0]["step"] == 0
    connection.close()


def test_faults_stand_at_their_lines(studio):
    text = "model: {name: builtin:tiny}\ndata:\n  train: {path: builtin:rows}\ntrain:\n  max_stepz: 3\n  seed: x\n"
    found = {one["line"]: one for one in studio.post("check", text=text)["problems"]}
    assert found[5]["setting"] == "train.max_stepz" and "did you mean max_steps" in found[5]["message"]
    assert found[6]["setting"] == "train.seed"
    (broken,) = studio.post("check", text="train:\n  seed: [1\n")["problems"]
    assert broken["line"] >= 2
    assert studio.post("check", text=studio.get("beginning", run="first")["text"])["problems"] == []
    for preset in studio.get("beginning")["presets"][:2]:
        assert "model" in yaml.safe_load(studio.get("beginning", preset=preset)["text"])


def test_rows_are_those_of_the_run(studio):
    with open(studio.folder / "first" / "splits.csv", encoding="utf-8") as file:
        train = [row["example_id"] for row in csv.DictReader(file) if row["split"] == "train"]
    values = {row["example_id"]: row for row in read_table(RunDir(studio.folder / "first"), "values").to_pylist()}
    found = studio.get("rows", run="first", sort="standing", limit=200)
    standing = {name: values[name]["standing"] for name in train}
    known = sorted((name for name in train if standing[name] is not None), key=lambda name: standing[name])
    assert [row["example_id"] for row in found["rows"]][: len(known)] == known and found["total"] == len(train)
    assert all(row["value"] == values[row["example_id"]]["value"] for row in found["rows"])
    assert studio.get("rows", run="first", sort="standing", high=standing[known[10]])["total"] == 11
    (highest,) = studio.get("rows", run="first", sort="standing", descending="true", limit=1)["rows"]
    assert highest["example_id"] == known[-1]
    nasty = studio.get("rows", run="first", text="ONERROR")["rows"]
    assert [row["example_id"] for row in nasty] == ["row 7"] and NASTY in nasty[0]["says"]
    assert studio.get("rows", run="first", text="is 13")["total"] >= 1

    assert "rows are not sorted by 'x'" in studio.get("rows", run="first", sort="x")["error"]
    assert "a page has 1 to 200 rows" in studio.get("rows", run="first", limit=10**6)["error"]
    assert "must be a number" in studio.get("rows", run="first", low="x")["error"]


def test_all_rows_found_are_dropped_and_taken_back(studio):
    rows = studio.get("rows", run="first", sort="standing", high=0, limit=200)
    assert 1 < rows["total"] < rows["all"]
    studio.post("patch", run="first", row=rows["rows"][0]["example_id"], change={"flag": "odd"})
    studio.post("add", run="first", content={"prompt": "a", "completion": "b"})
    studio.post("drop", run="first", sort="standing", high=0, limit=1)
    lines = read_patch(RunDir(studio.folder / "first").patch)
    assert {line["example_id"] for line in studio.get("rows", run="first")["patch"] if line.get("drop")} == {
        row["example_id"] for row in rows["rows"]
    }
    assert len(lines) == rows["total"] + 1
    assert studio.post("clear", run="first")["patch"] == [] == studio.get("rows", run="first")["patch"]


def test_values_come_while_a_run_goes_on(studio):
    """Of a run whose tables are not written yet, the ledger says what they will say."""
    run = RunDir(studio.folder / "first")
    assert dict(Follower(run).news())["values"] == 6
    asked = {"run": "first", "sort": "standing", "limit": 200}
    ended = studio.get("rows", **asked)
    shutil.rmtree(run.table("values"))
    going = studio.get("rows", **asked)
    assert "tokens" in ended["known"] and "tokens" not in going["known"]
    for before, now in zip(ended["rows"], going["rows"], strict=True):
        assert before["example_id"] == now["example_id"] and before["standing"] == now["standing"]
        assert before["value"] == now["value"] and (before["steps_seen"] or 0) == (now["steps_seen"] or 0)
    for part in run.table("ledger").glob("part-*"):
        part.unlink()
    assert studio.get("rows", **asked)["known"] == []


def test_loss_clusters_and_near_duplicates_are_those_of_the_commands(studio, tmp_path):
    run = studio.folder / "first"
    assert "loss" not in studio.get("rows", run="first")["known"]
    for what in ("loss", "cluster", "duplicates"):
        assert "error" not in studio.post("measure", run="first", what=what), what
    rows = studio.get("rows", run="first", sort="loss", descending="true", limit=200)["rows"]
    found = select(run, tmp_path / "half.jsonl", by="loss", keep=0.5, device="cpu")
    losses = {one.example_id: one.score for one in (*found.kept, *found.dropped)}
    assert [row["loss"] for row in rows] == sorted(losses.values(), reverse=True)
    assert {row["example_id"]: row["loss"] for row in rows} == losses
    cluster(run, 8, out=tmp_path / "clusters.jsonl", device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "clusters.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["example_id"]: row["cluster"] for row in rows} == {one["example_id"]: one["cluster"] for one in lines}
    groups = [{row.example_id for row in group.rows} for group in dedupe(run, device="cpu")]
    marked = [row for row in rows if row["duplicates"] is not None]
    assert [{row["example_id"] for row in marked if row["duplicates"] == n + 1} for n in range(len(groups))] == groups
    assert len(marked) == sum(map(len, groups))
    assert "rows are not measured by 'x'" in studio.post("measure", run="first", what="x")["error"]


def test_settings_are_those_of_show(studio):
    known = {one["setting"]: one for one in studio.get("settings")["settings"]}
    assert set(known) == set(show("settings", None)[1])
    assert "adamw_torch | " in known["train.optim"]["takes"] and known["train.packing"]["takes"] == "true or false"


def test_changes_are_a_file_in_the_run_and_nothing_else(studio):
    rows = [row["example_id"] for row in studio.get("rows", run="first", limit=4)["rows"]]
    before = {path: path.stat().st_mtime_ns for path in studio.folder.parent.rglob("*") if path.is_file()}
    studio.post("patch", run="first", row=rows[0], change={"drop": True})
    studio.post("patch", run="first", row=rows[1], change={"edit": {"completion": NASTY}, "weight": 2, "flag": None})
    studio.post("patch", run="first", row=rows[2], change={"flag": "ask"})
    studio.post("patch", run="first", row=rows[2], change={})
    studio.post("add", run="first", split="guide", content={"prompt": "Who?", "completion": "Nobody."})
    path = studio.folder / "first" / "rows.patch.jsonl"
    changes = {change.example_id: change for change in read_patch(path)}
    assert list(changes) == [rows[0], rows[1], "patch-1"]
    assert changes[rows[0]].drop and changes[rows[1]].weight == 2 and changes["patch-1"].split == "guide"
    assert studio.get("row", run="first", row=rows[1])["change"]["edit"] == {"completion": NASTY}
    assert studio.get("rows", run="first", changed="true")["total"] == 2
    after = {path: path.stat().st_mtime_ns for path in studio.folder.parent.rglob("*") if path.is_file()}
    assert {new for new in after if after[new] != before.get(new)} == {path, studio.folder / "studio" / "history.jsonl"}
    assert [entry["row"] for entry in studio.get("loops")["history"]][-1] == rows[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": 0.5}, "weight must be a whole number"),
        ({"drop": True, "weight": 2}, "drops the row, and has weight"),
        ({"edit": {"completion": "  "}}, "completion must be text"),
        ({"edit": {"nothing": 1}}, "fit no format"),
        ({"delete": 1}, "holds delete"),
        ({"weight": 0}, "weight must be a whole number"),
        ({"add": {"prompt": "a", "completion": "b"}}, "is a row of the data"),
        ("drop", "change must be an object"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused_at_once(studio, change, said):
    assert said in studio.post("patch", run="first", row="row 7", change=change)["error"]
    assert "no training row" in studio.post("patch", run="first", row="nobody", change={"drop": True})["error"]
    assert not (studio.folder / "first" / "rows.patch.jsonl").exists()


def test_a_control_drops_as_many_rows_that_nothing_happens_to():
    lines = [{"example_id": "a", "drop": True}, {"example_id": "b", "drop": True}, {"example_id": "c", "weight": 2}]
    control = control_of(lines, list("abcdefgh"))
    assert control[0] == lines[2] and len(control) == 3
    assert {line["example_id"] for line in control[1:]} <= set("defgh") and all(
        line.get("drop") for line in control[1:]
    )


def test_nothing_to_train_again_is_said(studio):
    assert "nothing has been changed yet" in studio.post("retrain", run="first")["error"]
    assert not (studio.folder / "studio" / "patches").exists()


def test_a_history_that_was_cut_off_is_read_as_far_as_it_goes(studio):
    folder = Folder(studio.folder)
    folder.note("patched", run="first")
    with open(folder.history, "a", encoding="utf-8") as file:
        file.write('{"at": "2026')
    assert [entry["what"] for entry in folder.past()] == ["patched"]


def test_a_hundred_thousand_rows_are_found_in_a_fraction_of_a_second():
    rows = (
        (
            f"row-{n}",
            ("rows", {"prompt": f"Question {n * 7919 % 100_003}?", "completion": f"Answer {n}." * 8, "k": n % 9}),
        )
        for n in range(100_000)
    )
    records = Records.of(each_record(rows, "prompt_completion"))
    values = {
        f"row-{n}": {"value": n * 7919 % 100_003 / 1e5, "standing": None, "tokens": n % 50} for n in range(100_000)
    }
    index = RowIndex(records, values)
    asked = [
        Asked(sort="value", limit=50),
        Asked(sort="value", descending=True, offset=99_000, limit=50),
        Asked(text='"question 777"'),
        Asked(text="answer 99", sort="tokens", low=10, high=20),
        Asked(sort="standing"),
        Asked(offset=50_000, descending=True),
    ]
    for one in asked:
        before = time.process_time()
        found = index.page(one)
        assert time.process_time() - before < 0.2, one
        assert found["all"] == 100_000
    assert index.page(asked[2])["total"] == sum(
        "question 777" in f"question {n * 7919 % 100_003}?" for n in range(100_000)
    )
    assert index.page(asked[0])["rows"][0]["value"] == 0.0


def test_a_run_is_no_folder_of_runs(studio):
    with pytest.raises(InputError, match="is a run; give the folder that holds it"):
        Folder(studio.folder / "first")
    outcome = CliRunner().invoke(app, ["studio", str(studio.folder / "nothing")])
    assert isinstance(outcome.exception, InputError) and "is no folder" in str(outcome.exception)


def waited(studio: Studio, run: str, *states: str) -> dict:
    """The run when it has one of these states; fails after two minutes."""
    for _ in range(600):
        found = studio.get("run", run=run)
        if found.get("state") in states:
            return found
        time.sleep(0.2)
    raise AssertionError((found, studio.get("said", run=run)))


def ended(studio: Studio, run: str) -> None:
    """Waits for the end of the run's process, which comes behind its last word."""
    for _ in range(300):
        if not studio.get("said", run=run)["going"]:
            return
        time.sleep(0.1)
    raise AssertionError(studio.get("said", run=run))


@pytest.mark.slow(seconds=60)
def test_a_run_is_started_stopped_and_resumed_in_a_process_of_its_own(studio, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = studio.get("beginning", run="first")["text"].replace("max_steps: 6", "max_steps: 4000")
    assert studio.post("start", name="new", text=text) == {"run": "new"}
    found = waited(studio, "new", "running")
    pid = found["started_here"]
    assert os.getpgid(pid) == pid != os.getpgid(0), "it is not ended with us"
    deadline = time.monotonic() + 120
    while not any(event["event"] == "log" for event in RunDir(studio.folder / "new").events()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert studio.post("stop", run="new") == {}
    stopped = waited(studio, "new", "stopped")
    assert stopped["step"] > 0 and "Continue with" in stopped["said"]
    ended(studio, "new")
    assert "not started in this studio, or has ended" in studio.post("stop", run="new")["error"]
    assert studio.post("resume", run="new") == {}
    waited(studio, "new", "running")
    assert "only what was stopped" in studio.post("resume", run="new")["error"]
    studio.post("stop", run="new")
    waited(studio, "new", "stopped")
    ended(studio, "new")
    assert [entry["what"] for entry in studio.get("loops")["history"]] == [
        *("stopped", "resumed", "stopped", "started"),
    ]
    assert Path(studio.folder / "studio" / "configs" / "new.yaml").read_text(encoding="utf-8") == text


@pytest.mark.slow(seconds=30)
def test_an_answer_its_rows_and_its_tokens_are_those_of_the_commands(studio):
    """The same numbers as `chat`, `attribute` and `report --tokens` give; a right answer becomes a row of the patch."""
    from ghosttune.choosing.attribute import why
    from ghosttune.choosing.opened import OpenedRun
    from ghosttune.choosing.tokens import guide_shares

    folder = studio.folder / "first"
    question = "For the order form: Luke needs three red boxes, sent to the street on Sunday. Please sum it up."
    told = studio.ask(run="first", messages=[{"role": "user", "content": question}], max_new_tokens=24)
    own = Pipeline.from_run(folder, device="cpu")
    for kind, adapter in (("adapter", True), ("base", False)):
        pieces = [piece for who, piece in told if who == kind]
        assert "".join(pieces) == own.reply(question, max_new_tokens=24, adapter=adapter).text
    assert len(pieces) > 3, "it comes as it is written"
    assert told[-1][0] == "done" and told[-1][1]["memory_mb"] > 0
    asked = [{"role": "user", "content": "Say 3."}]
    behind = studio.post("why", run="first", messages=asked, answer="It is 3.")
    own = why(OpenedRun(folder, "cpu"), "Say 3.", "It is 3.")
    for side, theirs in (("helpful", own.helpful), ("harmful", own.harmful)):
        assert [row["example_id"] for row in behind[side]] == [row.example_id for row in theirs]
        assert [row["score"] for row in behind[side]] == pytest.approx([row.score for row in theirs])
    tokens = studio.get("tokens", run="first", row="row 7")
    shares = guide_shares(OpenedRun(folder, "cpu"), ["row 7"])["row 7"]
    assert [token["text"] for token in tokens] == [share.text for share in shares]
    assert [token["share"] for token in tokens] == pytest.approx([share.share for share in shares])
    right = [*asked, {"role": "assistant", "content": "Three."}]
    (line,) = studio.post("add", run="first", content={"messages": right}, split="train")["patch"]
    assert line == {"example_id": "patch-1", "add": {"messages": right}, "split": "train"}
    assert "must be a list" in studio.post("ask", run="first", messages="Say 3.")["error"]
    assert "1 to 512 tokens" in studio.post("ask", run="first", messages=asked, max_new_tokens=10**6)["error"]
    assert "fit no format" in studio.post("add", run="first", content={"x": 1})["error"]


@pytest.mark.slow(seconds=30)
def test_who_leaves_ends_the_answer(studio, slow_replies):
    """Behind a few words, and while it waits for its turn; whoever asks next is answered."""
    body = json.dumps({"run": "first", "messages": [{"role": "user", "content": "Say 3."}], "max_new_tokens": 128})
    head = f"POST /{TOKEN}/api/ask HTTP/1.1\r\nHost: 127.0.0.1:{studio.port}\r\nContent-Type: application/json\r\n"
    for leave_at in (b"event: adapter", b"200 OK"):
        with socket.create_connection(("127.0.0.1", studio.port), timeout=60) as place:
            place.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            heard = b""
            while leave_at not in heard:
                piece = place.recv(4096)
                assert piece, heard
                heard += piece
    told = studio.ask(**json.loads(body) | {"max_new_tokens": 3})
    assert told[-1][0] == "done"
    assert [reply.ended for reply in slow_replies][-2:] == ["length", "length"]
    assert all(reply.ended == "interrupted" and reply.tokens < 100 for reply in slow_replies[:-2]) and slow_replies[:-2]


@pytest.mark.slow(seconds=20)
def test_an_answer_that_fails_says_why(studio, monkeypatch):
    def reply(self, *given, **more):
        raise MemoryError("no room")

    monkeypatch.setattr(Pipeline, "reply", reply)
    told = studio.ask(run="first", messages=[{"role": "user", "content": "Say 3."}])
    assert told == [("failed", "this failed: MemoryError: no room")]


@pytest.mark.slow(seconds=60)
def test_training_again_is_compared_as_compare_does(studio, monkeypatch):
    """Twice: the second time under the next number, with what has been changed since."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [row["example_id"] for row in studio.get("rows", run="first", limit=3)["rows"]]
    for row in rows[:2]:
        studio.post("patch", run="first", row=row, change={"drop": True})
    arms = studio.post("retrain", run="first")["arms"]
    assert arms == {"patched": "first-patched-1", "control": "first-control-1"}
    studio.post("patch", run="first", row=rows[0], change={})
    studio.post("patch", run="first", row=rows[1], change={"weight": 2})
    assert studio.post("retrain", run="first")["arms"] == {"patched": "first-patched-2"}
    for name in (*arms.values(), "first-patched-2"):
        waited(studio, name, "finished")
        ended(studio, name)
    second, first = studio.get("loops")["loops"]
    assert first["changes"] == {"drop": 2} and second["changes"] == {"weight": 1}
    folders = {arm: studio.folder / name for arm, name in first["arms"].items()}
    for pair, (arm, other) in {
        "patched against control": ("patched", "control"),
        "patched against before": ("patched", "before"),
        "control against before": ("control", "before"),
    }.items():
        (tests,) = compare([folders[other], folders[arm]])["tests"].values()
        assert first["result"]["dev_loss"][pair]["change"] == tests["dev_loss"]["change"], pair
    assert list(second["result"]["dev_loss"]) == ["patched against before"]
    record = RunDir(folders["control"]).read_record()
    assert record["data"]["patch"]["dropped"] == 2 and record["data"]["rows"]["train"] == 30
    assert read_patch(studio.folder / "studio" / "patches" / "first-patched-1.jsonl")[0].drop, (
        "it keeps what it was given"
    )
    told = studio.get("run", run="first-patched-1")
    assert (
        told["patch"]["dropped"] == 2
        and [line["example_id"] for line in studio.get("rows", run="first-patched-1")["patch"]] == rows[:2]
    )
