"""`ghosttune doctor`: what it says is so, and says nothing about who asks."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version

import psutil
import pytest
import torch

from ghosttune.workflows import doctor as module
from ghosttune.workflows.doctor import as_lines, doctor


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(address, methods and paths that were asked for); answers a head after what its path says."""
    asked: list[tuple[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append((self.command, self.path))
            time.sleep(2 if self.path == "/slow" else 0)
            self.send_response(404 if self.path == "/gone" else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}", asked
    served.shutdown()
    served.server_close()
    thread.join(timeout=60)


def test_it_says_what_is_here():
    found = doctor()
    assert found["packages"]["torch"] == version("torch") == torch.__version__
    assert found["packages"]["huggingface_hub"] == version("huggingface_hub")
    assert found["unmet"] == [] and found["network"] is None
    assert found["devices"]["cpus"] == os.cpu_count() and found["devices"]["threads"] == torch.get_num_threads()
    assert found["memory"]["total"] == psutil.virtual_memory().total
    assert 0 < found["memory"]["free"] <= found["memory"]["total"]
    assert all(0 <= sizes["free"] <= sizes["total"] for sizes in found["disk"].values())
    assert found["extras"]["serve"]["packages"]["starlette"] == version("starlette")
    if not torch.cuda.is_available():
        assert "no GPU" in found["devices"]["others"][0]


def test_it_says_nothing_of_who_asks(tmp_path):
    """Not even where the network is asked at an address with a password, which nobody answers."""
    home = tmp_path / "jane-doe"
    home.mkdir()
    secrets = {
        "HF_TOKEN": "hf_secret",
        "HF_ENDPOINT": "http://jane:hunter2@127.0.0.1:9/private",
        "https_proxy": "http://jane:hunter2@127.0.0.1:9",
        "HF_HOME": str(home / "models"),
        "TMPDIR": str(home),
    }
    environment = {**os.environ, "HOME": str(home), "USER": "jane-doe", "LOGNAME": "jane-doe", **secrets}
    command = [sys.executable, "-X", "importtime", "-m", "ghosttune", "doctor", "--network"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, timeout=300)
    assert done.returncode == 0, done.stderr
    said = (done.stdout + done.stderr).lower()
    assert said.count("does not answer") == 2
    assert not [word for word in ("jane", "hunter2", "hf_secret", str(tmp_path)) if word in said]
    assert os.uname().nodename not in re.split(r"[\s:,]+", done.stdout)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch" in imported
    assert not imported & {"transformers", "peft", "datasets", "accelerate", "scipy", "matplotlib", "pandas"}, "slow"


def test_an_extra_is_named_with_its_versions_and_its_use(monkeypatch):
    known = {"serve": {"starlette": "1.2", "uvicorn": None}, "export": {"gguf": None}, "judge": {}}
    monkeypatch.setattr(module, "packages", lambda extra=None: known.get(extra, {"torch": "3"}))
    monkeypatch.setattr(module, "unmet_requirements", lambda: ["torch is 3, and ghosttune needs <3"])
    text = "\n".join(as_lines(doctor()))
    assert "starlette 1.2, uvicorn is missing  (`ghosttune serve`)" in text
    assert "not installed  (`ghosttune export --to gguf`" in text
    assert "install ghosttune again  (`ghosttune evaluate --judge`)" in text
    assert "\nwrong      torch is 3, and ghosttune needs <3\n" in text


def test_a_torch_that_cannot_be_imported_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = doctor()
    assert "torch cannot be imported" in found["devices"]["others"][0]
    assert "torch cannot be imported" in "\n".join(as_lines(found))


def test_the_network_is_asked_for_heads_only(server, monkeypatch):
    address, asked = server
    monkeypatch.setattr(module, "INDEX", f"{address}/gone")
    monkeypatch.setenv("HF_ENDPOINT", address)
    said = doctor(network=True)["network"]
    assert sorted(asked) == [("HEAD", ""), ("HEAD", "/gone")] or sorted(asked) == [("HEAD", "/"), ("HEAD", "/gone")]
    assert said["package index"].startswith("127.0.0.1 answers (404)")
    assert said["hub"].startswith("127.0.0.1 answers (200)")
    assert ("HF_HUB_OFFLINE is set" in said["hub"]) == (os.environ.get("HF_HUB_OFFLINE") == "1")


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("ADDRESS/slow", "does not answer (timed out)"),
        ("http://127.0.0.1:9", "does not answer"),
        ("nonsense", "no address"),
        ("http://[", "no address"),
        ("", "no address"),
    ],
)
def test_what_does_not_answer_is_said_in_time(server, monkeypatch, place, says):
    address, _ = server
    monkeypatch.setattr(module, "INDEX", address)
    monkeypatch.setattr(module, "SECONDS", 0.3)
    monkeypatch.setenv("HF_ENDPOINT", place.replace("ADDRESS", address))
    assert says in doctor(network=True)["network"]["hub"]


def test_json_is_the_same(capsys):
    from ghosttune.cli.examining import doctor as command

    command(network=False, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == doctor().keys() and found["packages"] == doctor()["packages"]
