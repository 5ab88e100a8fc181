"""The server and those who mean no good: other pages and names, no key, half requests, work without end."""

from __future__ import annotations

import json
import logging
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from attacks import ATTACKS, attacked, fuzzed, post, started
from broken_bodies import mutated
from served import SECONDS, Served, served, until
from typer.testing import CliRunner

from ghosttune.cli.main import app
from ghosttune.errors import InputError
from ghosttune.inference.access import Access
from ghosttune.inference.connections import Connection
from ghosttune.inference.pipeline import Pipeline
from ghosttune.inference.queueing import Full, Job, Worker
from ghosttune.inference.voices import Limits

ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
FOUND = Path(__file__).parent / "found_bodies"
"""Bodies that once got a 500, or held the server."""


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open("builtin:tiny", "cpu")


@pytest.fixture(scope="module")
def server(pipeline) -> Iterator[Served]:
    with served(pipeline) as running:
        yield running


@pytest.fixture
def hasty(monkeypatch, pipeline) -> Iterator[Served]:
    """A server that waits a third of a second for a client, and has ten of them at most."""
    monkeypatch.setattr(Connection, "sending_seconds", 0.3)
    monkeypatch.setattr(Connection, "taking_seconds", 0.3)
    with served(pipeline, most=10) as running:
        yield running


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What the server writes into its log."""
    written: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger("uvicorn.error"), logging.getLogger("asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
    yield written
    for logger in loggers:
        logger.removeHandler(handler)


def sent(server: Served, *texts: str | bytes) -> socket.socket:
    """A connection over which this was sent."""
    opened = socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)
    for text in texts:
        opened.sendall(text if isinstance(text, bytes) else text.encode())
    return opened


def heard(connection: socket.socket) -> bytes:
    """All that the server says until it closes the connection."""
    with connection:
        said = b""
        try:
            while block := connection.recv(65536):
                said += block
        except ConnectionResetError:
            pass
        return said


@contextmanager
def well(server: Served, seconds: float = 5) -> Iterator[None]:
    """The health is answered within `seconds` all the time: a server in this very process also waits for the tests."""
    ended, took = threading.Event(), []

    def ask() -> None:
        while not ended.is_set():
            began = time.monotonic()
            server.health()
            took.append(time.monotonic() - began)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        ended.set()
        asking.join(SECONDS)
    assert took and max(took) < seconds, f"the longest of {len(took)}: {max(took):.2f} s"


# --- who may ask ---


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.5:80", "[::1]:8000", "::1"])
def test_this_machine_by_any_of_its_names(server, host) -> None:
    assert server.ask("GET", "/health", host=host)[0] == (403 if host == "::1" else 200)  # without brackets: a port


@pytest.mark.parametrize(
    "host", ["attacker.example", "localhost.attacker.example", "localhost@attacker.example", "127.0.0.1.nip.io", "",
             "0", "192.168.1.1", "localhost/x", "localhost:x", "[::1", "b\xfcro"]
)  # fmt: skip
def test_another_name_is_refused_for_every_call(server, host) -> None:
    for method, path in [("GET", "/"), ("GET", "/health"), ("POST", "/v1/chat/completions"), ("GET", "/nothing")]:
        status, refused = server.ask(method, path, host=host)
        assert (status, "is not this server's" in refused["error"]["message"]) == (403, True)


def test_names_that_are_allowed(pipeline) -> None:
    access = Access("0.0.0.0", "key", ("chat.example.org", "fd00::7"))
    with served(pipeline, access=access) as server:
        expected = {"chat.example.org": 200, "Chat.Example.org:443": 200, "[fd00::7]": 200, "localhost": 200,
                    "192.168.1.5:8000": 200, "example.org": 403, "x.chat.example.org": 403}  # fmt: skip
        assert {host: server.ask("GET", "/health", host=host)[0] for host in expected} == expected
        page = {"authorization": "Bearer key", "content_type": "application/json", "host": "127.0.0.1:9"}
        body = json.dumps(ASKED).encode()
        allowed = server.ask("POST", "/v1/chat/completions", body, origin="https://chat.example.org", **page)
        assert allowed[0] == 200, "a proxy may ask by another name than its page has"
    with served(pipeline, access=Access("fe80::1", "key")) as server:
        assert server.ask("GET", "/health", host="[fe80::1]:80")[0] == 200
        assert server.ask("GET", "/health", host="192.168.1.5")[0] == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("https://LOCALHOST:8000", 200),
        ("http://localhost:3000", 403),
        ("http://localhost", 403),
        ("http://127.0.0.1:8000", 403),
        ("http://attacker.example", 403),
        ("null", 403),
        ("", 403),
        ("http://[", 403),
    ],
)
def test_only_its_own_page_may_ask(server, origin, status) -> None:
    body, headers = json.dumps(ASKED).encode(), {"content_type": "application/json", "host": "localhost:8000"}
    assert server.ask("POST", "/v1/chat/completions", body, origin=origin, **headers)[0] == status
    assert server.ask("GET", "/v1/models", origin=origin, **headers)[0] == status


def test_the_key(pipeline) -> None:
    with served(pipeline, access=Access(api_key="kéy")) as server:
        shown = {"Bearer kéy": 200, "bearer  kéy": 200, "kéy": 401, "Basic kéy": 401, "Bearer": 401, "Bearer ": 401,
                 "Bearer k": 401, "Bearer \xff\xfe": 401, "": 401}  # fmt: skip
        latin = {text: text.encode().decode("latin-1") for text in shown}
        got = {text: server.ask("GET", "/v1/models", authorization=latin[text])[0] for text in shown}
        assert got == shown


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "myhost", ""])
def test_others_need_a_key(host) -> None:
    outcome = CliRunner().invoke(app, ["serve", "builtin:tiny", "--host", host])
    assert isinstance(outcome.exception, InputError) and "GHOSTTUNE_API_KEY" in str(outcome.exception)
    Access(host, "key")


def test_odd_keys_and_names() -> None:
    with pytest.raises(InputError, match="the API key is empty"):
        Access(api_key=" ")
    for name in ("http://a", "a:80", "a/b", "", "a@b"):
        with pytest.raises(InputError, match="without scheme and port, got"):
            Access(named=(name,))
    for own in ("localhost", "127.0.0.1", "::1", "127.1.2.3"):
        assert Access(own).api_key is None


def test_the_page_may_do_nothing_else(server) -> None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    connection.request("GET", "/")
    answer = connection.getresponse()
    page = answer.read().decode()
    connection.close()
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert policy.count("'sha256-") == page.count("<script>") + page.count("<style>") == 2
    assert "innerHTML" not in page and "localStorage" not in page


# --- work without end ---


def test_three_thousand_messages_are_refused_at_once(server) -> None:
    many = [{"role": ("user", "assistant")[n % 2], "content": "a"} for n in range(3001)]
    with well(server):
        for count, saying in ((3001, "4096 values"), (257, "at most 256 items"), (255, "the prompt has")):
            status, refused = server.post("/v1/chat/completions", {**ASKED, "messages": many[:count]})
            assert status == 400 and saying in refused["error"]["message"]


def test_a_hundred_thousand_faults_are_not_listed(server) -> None:
    with well(server):
        for wrong in ({"messages": [1] * 80_000}, {"stop": [1] * 80_000}, {str(n): 1 for n in range(20_000)}):
            status, refused = server.post("/v1/chat/completions", {**ASKED, **wrong})
            assert status == 400 and "more than 4096 values" in refused["error"]["message"]
    status, refused = server.post("/v1/chat/completions", {**ASKED, "x" * 200_000: 1, "model": "y" * 20_000})
    assert status == 400 and len(json.dumps(refused)) < 5000


def test_a_prompt_that_takes_for_ever_costs_nobody_else(monkeypatch, pipeline) -> None:
    begun, going = threading.Event(), threading.Event()
    encoder = type(pipeline.encoder)
    original = encoder.whole_prompt_ids

    def read(self: Any, turns: Any) -> list[int]:
        if turns[-1].content == "loop":
            begun.set()
            going.wait(timeout=SECONDS)
        return original(self, turns)

    monkeypatch.setattr(encoder, "whole_prompt_ids", read)
    with served(pipeline, Limits(reading_seconds=0.5)) as server, ThreadPoolExecutor(2) as pool, well(server):
        try:
            slow = {**ASKED, "messages": [{"role": "user", "content": "loop"}]}
            first = pool.submit(server.post, "/v1/chat/completions", slow)
            assert begun.wait(timeout=SECONDS)
            for answer in (first, pool.submit(server.post, "/v1/chat/completions", ASKED)):
                status, refused = answer.result(SECONDS)
                assert status == 503 and refused["error"]["message"] == "the request was not read within 0.5 s"
        finally:
            going.set()
        until(lambda: server.post("/v1/chat/completions", ASKED)[0] == 200)


def test_nobody_waits_where_nobody_may() -> None:
    begun, going = threading.Event(), threading.Event()
    worker = Worker("test", 0)
    worker.line.add(Job(lambda job: begun.set() or going.wait(timeout=SECONDS), lambda kind, value: None))
    assert begun.wait(timeout=SECONDS)
    with pytest.raises(Full):
        worker.line.add(Job(lambda job: None, lambda kind, value: None))
    going.set()
    until(lambda: not worker.line.busy)
    worker.line.add(Job(lambda job: None, lambda kind, value: None))
    worker.close()


def test_a_worker_outlives_what_is_no_exception() -> None:
    """Rust's panics are not; a thread that they ended would leave all the others waiting."""

    class Panic(BaseException):
        pass

    def panics(job: Job) -> None:
        raise Panic("at the disco")

    told: list[tuple[str, Any]] = []
    worker = Worker("test", 2)
    for work in (panics, lambda job: "fine"):
        worker.line.add(Job(work, lambda kind, value: told.append((kind, value))))
    until(lambda: len(told) == 2)
    assert told[0][0] == "error" and str(told[0][1]) == "Panic: at the disco" and told[1] == ("result", "fine")
    worker.close()


# --- half requests ---

HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "texts",
    [("GET /hea",), (HEAD,), (HEAD, "Content-Length: 50\r\n\r\n"), (HEAD, "Content-Length: 50\r\n\r\n", '{"model"'),
     (HEAD, "Transfer-Encoding: chunked\r\n\r\n5\r\n{"), ("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", HEAD)],
)  # fmt: skip
def test_half_a_request_is_ended(hasty, log, texts) -> None:
    connection = sent(hasty, texts[0])
    if len(texts) == 2 and texts[0].startswith("GET"):  # the second one on a connection
        until(lambda: b"ok" in connection.recv(65536))
    for text in texts[1:]:
        connection.sendall(text.encode())
    began = time.monotonic()
    said = heard(connection)
    assert said.startswith(b"HTTP/1.1 408 Request Timeout") and b"not sent within 0.3 s" in said
    assert time.monotonic() - began < 10
    assert hasty.health()["status"] == "ok" and not log


def test_half_a_request_does_not_keep_a_server_alive(pipeline, log) -> None:
    with served(pipeline) as server:
        half, nothing = sent(server, HEAD, "Content-Length: 50\r\n\r\n{"), sent(server, "GET /hea")
        until(lambda: server.health()["status"] == "ok")
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert heard(half).startswith(b"HTTP/1.1 503 Service Unavailable") and heard(nothing) == b"" and not log


def test_dripping_does_not_help(hasty) -> None:
    connection = sent(hasty, HEAD, "Content-Length: 5000\r\n\r\n")
    began = time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() - began < 10:
            connection.sendall(b" ")
            time.sleep(0.02)
    connection.close()


def test_who_says_nothing_or_goes_on_after_a_refusal_is_left(hasty, log) -> None:
    assert heard(sent(hasty)) == b""
    refused = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    for more in ("5\r\nabcde\r\n", "zz\r\n", ""):
        connection = sent(hasty, refused)
        until(lambda: b"content-type is missing" in connection.recv(65536))  # noqa: B023
        connection.sendall(more.encode())
        assert b"200" not in heard(connection)
    assert heard(sent(hasty, "\x16\x03\x01\r\n\r\n")).startswith(b"HTTP/1.1 400 Bad Request")
    assert heard(sent(hasty, "GET / HTTP/1.1\r\nA: " + "x" * 100_000)).startswith(b"HTTP/1.1 400 Bad Request")
    assert not log


def test_who_does_not_read_is_left(hasty, log) -> None:
    """And who asks again before reading gets one answer."""
    ask = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    said = heard(sent(hasty, ask * 50))
    assert said.count(b"HTTP/1.1 200") == 1
    assert not log


def test_an_answer_that_nobody_takes_is_dropped(hasty, monkeypatch, log) -> None:
    from ghosttune.inference import serving

    monkeypatch.setattr(serving, "PAGE", "x" * 50_000_000)
    connection = sent(hasty, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    time.sleep(1.5)
    assert len(heard(connection)) < 49_000_000
    assert not log


def test_a_crowd_of_half_requests_makes_room(hasty, log) -> None:
    crowd = [sent(hasty, "GET /hea") for _ in range(30)]
    assert hasty.health()["status"] == "ok"
    assert heard(crowd[0]) == b"", "the oldest went first, without a word"
    for one in crowd[1:]:
        one.close()
    assert not log


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_who_leaves_leaves_no_trace(server, log, share, stream) -> None:
    body = json.dumps({**ASKED, "max_tokens": 100, "stream": stream}).encode()
    for _ in range(20):
        sent(server, HEAD, f"Content-Length: {len(body)}\r\n\r\n", body[: int(len(body) * share)]).close()
    until(lambda: server.health() == {"status": "ok", "model": "tiny", "answering": 0, "waiting": 0})
    assert not log


# --- broken bodies ---


@pytest.mark.parametrize(
    "setting", [{"temperature": 1e-320}, {"temperature": 5e-324}, {"temperature": 1, "top_p": 1e-320}]
)
def test_numbers_too_small_to_mean_anything(server, setting) -> None:
    status, refused = server.post("/v1/chat/completions", {**ASKED, **setting})
    assert status == 400 and "accepted is 0" in refused["error"]["message"]
    for fine in ({"temperature": 1e-5}, {"temperature": 1, "top_p": 1e-5}, {"temperature": 1, "top_k": 2**70}):
        assert server.post("/v1/chat/completions", {**ASKED, **fine})[0] == 200


def test_hundreds_of_broken_bodies_never_break_the_server(server) -> None:
    draw = random.Random(5)
    found = [path.read_bytes() for path in sorted(FOUND.glob("*.json"))]
    statuses = []
    for number, body in enumerate([*found, *(mutated(draw) for _ in range(500))]):
        status, reply = server.post(("/v1/chat/completions", "/v1/completions")[number % 2], body)
        assert status in (200, 400, 404), (number, status, reply)
        assert status == 200 or set(reply["error"]) == {"message", "type", "param", "code"}
        statuses.append(status)
    assert statuses.count(400) > 400 and 200 in statuses
    assert server.post("/v1/chat/completions", ASKED)[0] == 200


# --- all of it, against a process of its own ---


@pytest.mark.slow(seconds=45)
def test_under_every_attack_others_are_heard(tmp_path) -> None:
    """Half a second, without the time in which a laden machine had no processor for the server."""
    with started(tmp_path / "log") as server:
        for name, attack in ATTACKS.items():
            health = attacked(server, attack, 1)
            assert max(health.own) < 0.5, f"{name}: {health}"
            until(lambda: post(server.port, json.dumps({**ASKED, "model": "builtin:tiny"}).encode())[0] == 200)
        health, statuses, broke = fuzzed(server, seed=1, count=3000)
        assert not broke and set(statuses) <= {200, 400, 404} and max(health.own) < 0.5, (health, statuses, broke)
    assert "Traceback" not in (tmp_path / "log").read_text()
