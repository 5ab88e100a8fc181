"""Word of a run that goes wrong: what is sent, what is never written down, and that training goes on whatever fails."""

from __future__ import annotations

import http.server
import json
import shlex
import shutil
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from ghosttune import own_code, train
from ghosttune.config.sections.run import AlertSettings
from ghosttune.errors import ConfigError, NotANumber
from ghosttune.run.directory import RunDir
from ghosttune.training import alerting
from ghosttune.training.alerting import Alerts
from ghosttune.workflows.train import resume

TOKEN = "T0P-S3CRET"
ALL = ["nan", "plateau", "worse"]


@pytest.fixture
def server() -> Iterator[SimpleNamespace]:
    """`address`, and what was `posted` there; answers with the code at the end of the path."""
    posted: list[dict] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if self.path.endswith("/slow"):
                time.sleep(2)
            code = int(self.path.rpartition("/")[2]) if self.path[-3:].isdigit() else 200
            self.send_response(code)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield SimpleNamespace(address=f"http://127.0.0.1:{served.server_port}", posted=posted)
    served.shutdown()
    served.server_close()
    thread.join(timeout=60)


def evaluated(*losses: float) -> list[dict]:
    return [{"event": "eval", "split": "dev", "step": step, "loss": loss} for step, loss in enumerate(losses)]


def told(events: list[dict], before: list[dict] | None = None, **settings) -> list[tuple]:
    """What is sent of these events, as (alert, step)."""
    sent: list[tuple] = []
    alerts = Alerts(AlertSettings(command="x", **settings), "run", lambda event: None, before or [])
    alerts.send = lambda kind, step, text: sent.append((kind, step))
    for event in events:
        alerts.hear(event)
    return sent


def test_a_plateau_is_told_once_until_something_is_better():
    assert told(evaluated(9, 3, 2, 2, 2.5, 2, 2), on=["plateau"], patience=2) == [("plateau", 4)]
    losses = evaluated(9, 3, 2, 2, 2, 1, 1, 1)
    assert told(losses, on=["plateau"], patience=2) == [("plateau", 4), ("plateau", 7)]
    assert told(evaluated(1, 3, 2.5, 2), on=["plateau"], patience=1) == [], "the untouched base is no evaluation of it"
    rewards = [event | {"reward": reward} for event, reward in zip(evaluated(0, 1, 2, 3), [0, 1, 2, 2], strict=True)]
    assert told(rewards, on=["plateau"], patience=1) == [("plateau", 3)], "of answers that earn, the reward"


def test_a_run_that_goes_on_counts_what_was_before():
    events = evaluated(9, 3, 2, 2, 2)
    assert told(events[4:], before=events[:4], on=["plateau"], patience=2) == [("plateau", 4)]


def test_a_verdict_is_told_when_it_is_worse():
    verdict = {"dev_loss_base": 1.0, "dev_loss": 2.0, "best_step": 7}
    for word, sent in (("worse", [("worse", 7)]), ("better", []), ("not distinguishable", [])):
        assert told([{"event": "end", "verdict": verdict | {"verdict": word}}], on=["worse"]) == sent


def alerting_to(server, monkeypatch, path: str = f"/{TOKEN}", **settings) -> tuple[Alerts, list[dict]]:
    monkeypatch.setenv("ALERTS_GO_TO", server.address + path if server else path)
    heard: list[dict] = []
    return Alerts(AlertSettings(webhook="ALERTS_GO_TO", on=ALL, **settings), "my run", heard.append), heard


def test_a_webhook_gets_json_that_chat_programs_show(server, monkeypatch):
    alerts, heard = alerting_to(server, monkeypatch)
    alerts.send("nan", 3, "the loss is none: ü")
    text = "my run: the loss is none: ü"
    assert server.posted == [{"alert": "nan", "run": "my run", "step": 3, "text": text, "content": text}]
    assert heard == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/x/500", "it answers 500"),
        ("/x/404", "it answers 404"),
        ("/x/302", "it answers 302"),
        ("/slow", "timeout"),
    ],
)
def test_a_webhook_that_fails_is_said_without_its_address(server, monkeypatch, path, said):
    monkeypatch.setattr(alerting, "SECONDS", 0.3)
    alerts, heard = alerting_to(server, monkeypatch, f"/{TOKEN}{path}")
    alerts.send("worse", 3, "it is worse")
    assert len(server.posted) == 1, "and what it leads to is not asked"
    (notice,) = heard
    assert said.lower() in notice["text"].lower() and "it is worse" in notice["text"]
    assert TOKEN not in str(heard) and "127.0.0.1" not in str(heard)


@pytest.mark.parametrize("address", [f"http://127.0.0.1:9/{TOKEN}", f"http://nowhere.invalid/{TOKEN}"])
def test_a_webhook_that_is_not_there_is_said_too(monkeypatch, address):
    alerts, heard = alerting_to(None, monkeypatch, address)
    alerts.send("worse", 3, "it is worse")
    assert "could not be told" in heard[0]["text"] and TOKEN not in str(heard)


@pytest.mark.parametrize(
    "address", [f"file:///{TOKEN}", f"ftp://x/{TOKEN}", TOKEN, "", "http://", "http://[", "http://x:y/"]
)
def test_only_http_is_an_address(make_config, tmp_path, monkeypatch, address):
    monkeypatch.setenv("ALERTS_GO_TO", address)
    config = make_config(alerts__on=["nan"], alerts__webhook="ALERTS_GO_TO")
    with pytest.raises(
        ConfigError, match=r"alerts\.webhook: .* ALERTS_GO_TO holds no http or https address"
    ) as refused:
        train(config, tmp_path / "run")
    assert TOKEN not in str(refused.value) and not (tmp_path / "run").exists()


def test_what_cannot_be_told_is_refused_at_once(make_config, tmp_path, monkeypatch):
    monkeypatch.delenv("ALERTS_GO_TO", raising=False)
    monkeypatch.setattr(own_code, "_allowed", False)
    config = make_config(alerts__on=["nan"], alerts__webhook="ALERTS_GO_TO", alerts__command=f"touch {tmp_path}/ran")
    with pytest.raises(ConfigError) as refused:
        train(config, tmp_path / "run")
    assert "ALERTS_GO_TO is not set" in str(refused.value) and "give --allow-code" in str(refused.value)
    assert not list(tmp_path.glob("r*n"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on": ["nan"]}, "alerts.on: tells nobody"),
        ({"webhook": "X"}, "alerts.webhook: does nothing while alerts.on is null"),
        ({"on": ["nan"], "command": "x", "patience": 5}, "alerts.patience: does nothing without plateau"),
        ({"on": ["nun"], "command": "x"}, "did you mean nan"),
        ({"on": ["nan"], "webhook": "https://x/y"}, "must be the name of an environment variable, not what it holds"),
        ({"on": ["nan"], "command": "x", "patience": 0}, "must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make_config, settings, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        make_config(**{f"alerts__{name}": value for name, value in settings.items()})


def test_a_command_is_told_by_its_environment(tmp_path, monkeypatch):
    """So that nothing in a message is a command."""
    heard: list[dict] = []
    out = shlex.quote(str(tmp_path / "out"))
    command = f'printf "%s|" "$GHOSTTUNE_ALERT" "$GHOSTTUNE_RUN" "$GHOSTTUNE_STEP" "$GHOSTTUNE_MESSAGE" > {out}'
    alerts = Alerts(AlertSettings(on=ALL, command=command), "$(touch evil) `x`", heard.append)
    monkeypatch.chdir(tmp_path)
    alerts.send("nan", None, "rows '; touch evil; $(touch evil)")
    said = (tmp_path / "out").read_text()
    assert said == "nan|$(touch evil) `x`||$(touch evil) `x`: rows '; touch evil; $(touch evil)|"
    assert not (tmp_path / "evil").exists() and heard == []


@pytest.mark.parametrize(
    ("command", "said"),
    [("exit 3", "ended with 3"), ("nowhere-to-be-found", "ended with 127"), ("sleep 60", "over 0.3 s")],
)
def test_a_command_that_fails_is_said(monkeypatch, command, said):
    monkeypatch.setattr(alerting, "SECONDS", 0.3)
    heard: list[dict] = []
    Alerts(AlertSettings(on=ALL, command=command), "run", heard.append).send("nan", 1, "x")
    assert said in heard[0]["text"]


def test_a_run_that_gets_worse_says_so_and_keeps_the_address_to_itself(make_config, server, tmp_path, monkeypatch):
    """The server that is told answers with an error, and the run ends well. The verdict is put in its mouth."""
    monkeypatch.setattr("ghosttune.stages.finish.verdict", lambda *_, **__: "worse")
    monkeypatch.setenv("ALERTS_GO_TO", f"{server.address}/{TOKEN}/500")
    heard: list[dict] = []
    ruinous = {
        "train__learning_rate": 0.9,
        "train__warmup_steps": 0,
        "train__eval_steps": 1,
        "data__dev__fraction": 0.5,
    }
    where = {"alerts__on": ALL, "alerts__webhook": "ALERTS_GO_TO", "alerts__patience": 1}
    config = make_config(**ruinous, **where, evaluate__limit=0)
    run = train(config, tmp_path / "run", listen=heard.append)
    assert run.record["status"] == "finished"
    alerts = [message["alert"] for message in server.posted]
    assert alerts[-1] == "worse" and {*alerts} <= {"plateau", "worse"}
    assert len([event for event in heard if event["event"] == "notice"]) == len(alerts)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files and not [path for path in files if TOKEN.encode() in path.read_bytes()]


@pytest.fixture
def broken_model(tiny_model, tmp_path) -> str:
    folder = tmp_path / "broken-model"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(str(folder / "model.safetensors"))
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return str(folder)


def test_a_loss_that_is_none_is_told_and_a_stranger_s_run_runs_nothing(
    make_config, broken_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(own_code, "_allowed", True)
    out = tmp_path / "out"
    command = f'echo "$GHOSTTUNE_MESSAGE" > {shlex.quote(str(out))}'
    config = make_config(model__name=broken_model, alerts__on=["nan"], alerts__command=command)
    with pytest.raises(NotANumber):
        train(config, tmp_path / "run")
    assert out.read_text().startswith("run: the untouched base") and "not a number" in out.read_text()
    assert RunDir(tmp_path / "run").read_record()["status"] == "failed"
    out.unlink()
    monkeypatch.setattr(own_code, "_allowed", False)
    with pytest.raises(ConfigError, match="give --allow-code"):
        resume(tmp_path / "run")
    assert not out.exists()
