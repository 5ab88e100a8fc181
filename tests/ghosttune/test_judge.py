"""A judge behind an endpoint: both orders, ties, what it is trusted by, and a key that is written nowhere."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ghosttune import train
from ghosttune.errors import GhosttuneError, InputError
from ghosttune.judging.judge import KEY, evaluate_by_judge
from ghosttune.metrics.intervals import share

PAIR = re.compile(r"\[Answer A\]\n(.*?)\n\n\[Answer B\]\n(.*?)\n\n\[Your verdict\]", re.DOTALL)


@contextmanager
def endpoint(verdict: Callable[[str, str], str], status: int = 200) -> Iterator[tuple[str, list[dict]]]:
    """(address, requests so far) of a server that judges the two answers it is shown."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"key": self.headers["Authorization"], "path": self.path})
            first, second = PAIR.search(body["messages"][-1]["content"]).groups()
            message = {"role": "assistant", "content": verdict(first, second)}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            answer = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": choices}
            text = json.dumps(answer if status == 200 else {"error": {"message": "no"}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def longer(first: str, second: str) -> str:
    """Prefers the longer answer wherever it stands; [[B]] is only talked about."""
    letter = "C" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return f"It could be [[B]], but no. [[{letter}]]"


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    from ghosttune.proving.specimens import short_run, write_rows

    folder = tmp_path_factory.mktemp("to-judge")
    changes = {"train__learning_rate": 0.05, "evaluate__limit": 8, "evaluate__max_new_tokens": 6}
    return train(short_run(tiny_model, write_rows(folder / "rows.jsonl"), **changes), folder / "run")


def test_the_judge_is_asked_in_both_orders(run, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "a-secret-key")
    with endpoint(longer) as (url, asked):
        (found,) = evaluate_by_judge(run.path, url, "strict", out=tmp_path).values()
    lines = [json.loads(line) for line in (tmp_path / "predictions/judge-dev.jsonl").read_text().splitlines()]
    pairs = [(line["output"], line["base_output"]) for line in lines]
    assert [pair for body in asked for pair in [PAIR.search(body["messages"][-1]["content"]).groups()]] == [
        order for ours, base in pairs if ours != base for order in ((ours, base), (base, ours))
    ]
    assert all(body["key"] == "Bearer a-secret-key" and body["model"] == "strict" for body in asked)
    expected = [1.0 if len(o) > len(b) else 0.0 if len(o) < len(b) else 0.5 for o, b in pairs]
    assert [line["scores"]["preferred"] for line in lines] == expected
    judge = found["judge"]
    assert (judge["wins"], judge["ties"], judge["losses"]) == tuple(expected.count(v) for v in (1.0, 0.5, 0.0))
    assert found["adapter"]["preferred"]["value"] == pytest.approx(sum(expected) / len(expected))
    assert found["base"]["preferred"]["value"] == pytest.approx(1 - sum(expected) / len(expected))
    assert judge["changed_with_the_order"] == share([False] * len(pairs)).as_dict()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"a-secret-key" not in written


def test_a_judge_that_prefers_a_place_makes_ties_only(run, tmp_path):
    with endpoint(lambda first, second: "[[A]]") as (url, _):
        (found,) = evaluate_by_judge(run.path, url, "first", out=tmp_path).values()
    differ = found["questions"] - found["judge"]["changed_with_the_order"]["value"] * found["questions"]
    assert found["judge"]["ties"] == found["questions"] and differ < found["questions"]
    assert found["comparison"]["base"]["preferred"]["verdict"] == "not distinguishable"


def test_agreement_is_with_the_answers_that_are_right():
    from ghosttune.data.questions import Question
    from ghosttune.judging.judge import Judged, _agreement

    question = Question("q", (), ("red",), {})
    ours, theirs = Judged(("[[A]]", "[[B]]")), Judged(("[[B]]", "[[A]]"))
    read = [((question, "red", "no"), ours), ((question, "red", "no"), theirs), ((question, "a", "b"), ours)]
    read.append(((question, "no", "red"), theirs))
    assert _agreement(read) == share([True, False, True]).as_dict() and _agreement(read[2:3]) is None


def test_what_the_judge_does_not_say_is_named(run, tmp_path):
    with endpoint(lambda first, second: "I like both") as (url, _), pytest.raises(GhosttuneError, match="ends with"):
        evaluate_by_judge(run.path, url, "vague", out=tmp_path)
    with (
        endpoint(longer, status=401) as (url, _),
        pytest.raises(GhosttuneError, match=f"answered 401; the key .* {KEY}"),
    ):
        evaluate_by_judge(run.path, url, "closed", out=tmp_path)
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.parametrize("url", ["nowhere", "ftp://host/v1", "http://me:secret@host/v1", "http://host/v1?key=secret"])
def test_addresses_that_are_none_or_hold_a_key_are_refused(url, run):
    with pytest.raises(InputError, match="--judge"):
        evaluate_by_judge(run.path, url, "any")
