"""Trackers are run for real where they keep their records on this machine, and read back by their own means."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ghosttune import train
from ghosttune.errors import ConfigError, InputError
from ghosttune.run.tables import read_table
from ghosttune.stages import prepare
from ghosttune.stages.runs import Run
from ghosttune.training.tracking import COLUMNS, TRACKERS, Tracker, Trackers

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the trackers' own packages
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

MEASURED = {
    "train__max_steps": 4,
    "train__eval_steps": 2,
    "train__save_steps": 2,
    "train__logging_steps": 1,
    "measure__norms__every": 1,
    "measure__ledger__guide_every": 1,
    "data__guide__rows": 4,
    "evaluate__samples": 1,
    "evaluate__limit": 0,
}


@pytest.fixture
def tracked(make_config, tmp_path, monkeypatch):
    """Trains a measured run with one tracker, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_S3CRET")

    def run(name: str) -> Run:
        pytest.importorskip(name)
        done = train(make_config(run__trackers=[name], **MEASURED), tmp_path / "my-run")
        assert "trackers_failed" not in done.record
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not [path for path in files if b"hf_S3CRET" in path.read_bytes()]
        return done

    return run


def expected(run: Run) -> dict[str, dict[int, float]]:
    """What a tracker should hold, by the run's own record: name -> step -> number."""
    events = run.folder.events()
    norms = read_table(run.folder, "norms", ["step", "group", "norm"]).to_pylist()
    found: dict[str, dict[int, float]] = {
        "loss": {event["step"]: event["loss"] for event in events if event["event"] == "log"},
        "eval_loss": {event["step"]: event["loss"] for event in events if event["event"] == "eval"},
        "verdict/dev_loss": {4: run.record["verdict"]["dev_loss"]},
        "ledger/guide_loss_end": {4: run.record["ledger"]["guide_loss_end"]},
    }
    for group in {row["group"] for row in norms}:
        own = [(row["step"], row["norm"]) for row in norms if row["group"] == group]
        found[f"norm/{group}"] = {
            step: math.sqrt(sum(norm**2 for at, norm in own if at == step)) for step in range(1, 5)
        }
    return found


def prefixed(name: str) -> str:
    """As Transformers renames numbers for most trackers."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def assert_holds(held: dict[str, dict[int, float]], run: Run, rename=prefixed) -> None:
    for name, numbers in expected(run).items():
        own = held[rename(name)]
        assert own.keys() >= numbers.keys(), name
        assert [own[step] for step in numbers] == pytest.approx(list(numbers.values()), rel=1e-5), name


def values_of(run: Run) -> np.ndarray:
    return read_table(run.folder, "values", ["value"])["value"].drop_null().to_numpy()


def answers_of(run: Run) -> dict[int, str]:
    events = [event for event in run.folder.events() if event["event"] == "samples"]
    return {event["step"]: event["answers"][0]["output"] for event in events}


def test_tensorboard(tracked):
    run = tracked("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in run.path.parent.rglob("events.out.tfevents*")}
    board = EventAccumulator(str(folder))
    board.Reload()
    held = {tag: {event.step: event.value for event in board.Scalars(tag)} for tag in board.Tags()["scalars"]}
    assert_holds(held, run)
    (histogram,) = board.Histograms("values")
    assert histogram.histogram_value.num == len(values_of(run))
    assert histogram.histogram_value.sum == pytest.approx(values_of(run).sum())
    (tag,) = [tag for tag in board.Tags()["tensors"] if tag.startswith("samples/")]
    shown = {event.step: event.tensor_proto.string_val[0].decode() for event in board.Tensors(tag)}
    assert all(line in shown[step] for step, output in answers_of(run).items() for line in output.splitlines())
    (report,) = board.Tensors("report/text_summary")
    assert report.tensor_proto.string_val[0].decode() == str(run.path / "report" / "index.html")


def test_mlflow(tracked, tmp_path, monkeypatch):
    """In SQLite, as it does unless told otherwise."""
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = tracked("mlflow")
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = client.search_experiments()
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "my-run" and found.info.status == "FINISHED" and mlflow.active_run() is None
    history = {name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    assert_holds({name: {one.step: one.value for one in ones} for name, ones in history.items()}, run, str)
    download = Path(client.download_artifacts(found.info.run_id, "", str(tmp_path)))
    assert (download / "report" / "index.html").read_bytes() == (run.path / "report" / "index.html").read_bytes()
    histogram = json.loads((download / "values.json").read_text())
    assert sum(histogram["counts"]) == len(values_of(run)) and histogram["edges"][0] == values_of(run).min()
    table = json.loads((download / "samples.json").read_text())
    assert table["columns"] == COLUMNS
    assert {row[0]: row[3] for row in table["data"]} == answers_of(run)


def test_trackio(tracked, tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    for module in ("utils", "sqlite_storage", "cas"):
        for place in ("TRACKIO_DIR", "MEDIA_DIR"):
            if hasattr(owner := getattr(trackio, module), place):
                monkeypatch.setattr(owner, place, tmp_path / "trackio" / place)
    run = tracked("trackio")
    (found,) = trackio.Api().runs("huggingface")
    assert found.name == "my-run"
    logs = trackio.SQLiteStorage.get_logs("huggingface", "my-run")
    held: dict[str, dict[int, float]] = {}
    for log in logs:
        for name, value in log.items():
            if isinstance(value, int | float):
                held.setdefault(name, {})[log["train/global_step"]] = value
    assert_holds(held, run)
    (histogram,) = [log["values"] for log in logs if "values" in log]
    assert sum(histogram["values"]) == len(values_of(run))
    tables = [log["samples"]["_value"] for log in logs if "samples" in log]
    assert {rows[0]["step"]: rows[0]["output"] for rows in tables} == answers_of(run)
    trackio.init(project="huggingface", name="reader")
    folder = Path(trackio.use_artifact("report:latest").download(str(tmp_path / "down")))
    trackio.finish()
    assert (folder / "index.html").read_bytes() == (run.path / "report" / "index.html").read_bytes()


def test_comet_offline(tracked, tmp_path, monkeypatch):
    """An archive that `comet upload` would send."""
    pytest.importorskip("comet_ml")
    import zipfile

    monkeypatch.setenv("COMET_START_ONLINE", "false")
    monkeypatch.setenv("COMET_OFFLINE_DIRECTORY", str(tmp_path / "comet"))
    run = tracked("comet_ml")
    (archive,) = (tmp_path / "comet").glob("*.zip")
    with zipfile.ZipFile(archive) as opened:
        messages = [json.loads(line) for line in opened.read("messages.json").decode().splitlines()]
        kept = [opened.read(name) for name in opened.namelist()]
    metrics = [
        message["payload"]["metric"] | message["payload"] for message in messages if "metric" in message["payload"]
    ]
    held: dict[str, dict[int, float]] = {}
    for metric in metrics:
        held.setdefault(metric["metricName"], {})[metric["step"]] = float(metric["metricValue"])
    assert_holds(held, run)
    assert (run.path / "report" / "index.html").read_bytes() in kept
    assert "histogram3d" in json.dumps(messages)


def test_swanlab_local(tracked, tmp_path, monkeypatch):
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    monkeypatch.setenv("SWANLAB_LOG_DIR", str(tmp_path / "swanlog"))
    run = tracked("swanlab")
    written = b"".join(path.read_bytes() for path in (tmp_path / "swanlog").rglob("*") if path.is_file())
    names = [*map(prefixed, expected(run)), "samples", "values", "report"]
    assert not [name for name in names if name.encode() not in written]


def recorder(told: list, fails_at: str = "") -> Tracker:
    """A tracker that notes what it is told, and fails at one of it."""

    def note(what: str):
        def noted(*given: Any, **named: Any) -> None:
            told.append((what, named.get("logs")))
            if what == fails_at:
                raise OSError("https://user:secret@host is gone\nsecond line")

        return noted

    integration = {name: note(name) for name in ("on_train_begin", "on_log", "on_train_end")}
    return Tracker(lambda: SimpleNamespace(**integration), note("answers"), note("histogram"), note("file"))  # type: ignore[arg-type]


@pytest.mark.parametrize("fails_at", ["on_log", "answers", "histogram", "file", "on_train_end"])
def test_a_tracker_that_fails_is_said_and_stops_nothing(make_config, tmp_path, monkeypatch, fails_at):
    told: list = []
    others: list = []
    heard: list[dict] = []
    monkeypatch.setitem(TRACKERS, "wandb", recorder(told, fails_at))
    monkeypatch.setitem(TRACKERS, "mlflow", recorder(others))
    monkeypatch.setattr(prepare, "find_spec", lambda name: name)
    config = make_config(run__trackers=["wandb", "mlflow"], **MEASURED)
    run = train(config, tmp_path / "run", listen=heard.append)
    assert run.record["status"] == "finished"
    assert [what for what, _ in told].count(fails_at) == 1, "it is told nothing more"
    (notice,) = [event["text"] for event in heard if event["event"] == "notice"]
    assert "wandb is told nothing more" in notice and "second line" not in notice
    if fails_at != "on_train_end":
        assert run.record["trackers_failed"]["wandb"].startswith("OSError at step")
    assert "secret" not in run.folder.record.read_text()
    assert {what for what, _ in others} == {"on_train_begin", "on_log", "answers", "histogram", "file", "on_train_end"}
    assert all(math.isfinite(value) for _, logs in others if logs for value in logs.values())


def test_a_tracker_that_cannot_start_is_an_error_with_its_name(make_config, tmp_path, monkeypatch):
    monkeypatch.setitem(TRACKERS, "wandb", recorder([], "on_train_begin"))
    monkeypatch.setattr(prepare, "find_spec", lambda name: name)
    with pytest.raises(InputError, match=r"run\.trackers: wandb cannot be started"):
        train(make_config(run__trackers=["wandb"], **MEASURED), tmp_path / "run")


def test_trackers_are_closed_where_training_fails(make_config, tmp_path, monkeypatch):
    told: list = []
    monkeypatch.setitem(TRACKERS, "wandb", recorder(told))
    monkeypatch.setattr(prepare, "find_spec", lambda name: name)
    config = make_config(run__trackers=["wandb"], **MEASURED)

    def interrupt(event: dict) -> None:
        if event["event"] == "step" and event["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", listen=interrupt)
    assert told[-1][0] == "on_train_end"


def test_packages_that_are_missing_are_named_with_their_extras(make_config, monkeypatch):
    monkeypatch.setattr(prepare, "find_spec", lambda name: None)
    message = r"not installed: mlflow, comet_ml; pip install 'ghosttune\[mlflow,comet_ml\]'"
    with pytest.raises(ConfigError, match=message):
        prepare.prepare(make_config(run__trackers=["mlflow", "comet_ml"]))


def test_every_tracker_that_can_be_named_is_one():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from ghosttune.config.sections.run import RunSettings

    (names,) = RunSettings.model_fields["trackers"].annotation.__args__  # type: ignore[union-attr]
    assert {*names.__args__} == TRACKERS.keys()
    own = {name: tracker.integration for name, tracker in TRACKERS.items() if name != "swanlab"}  # begins its run first
    assert all(INTEGRATION_TO_CALLBACK[name] is integration for name, integration in own.items())
    assert Trackers([], SimpleNamespace(instruments=[]), print).open == {}  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quiet():
    """Loggers of trackers' packages that would be heard by later tests."""
    level = logging.root.level
    yield
    logging.root.setLevel(level)
