"""The studio under attack: no token, other hosts and pages, paths that lead out, rows that would be markup."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from urllib.parse import quote

import pytest
from opened_studio import NASTY, TOKEN

from ghosttune.errors import InputError
from ghosttune.run.directory import RunDir
from ghosttune.studio import app as studio_app
from ghosttune.studio.app import DOING, FILES, READING
from ghosttune.studio.folder import Folder

CALLS = [*FILES, *(f"api/{name}" for name in (*READING, *DOING, "ask")), "live?run=first", "report/first/index.html"]


@pytest.mark.parametrize("token", ["", "other", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), f".{TOKEN}", "%00", "é"])
def test_without_the_token_nothing_answers(studio, token):
    for call in CALLS:
        for method in ("GET", "POST", "HEAD"):
            status, headers, text = studio.raw(method, f"/{quote(token)}/{call}", b"{}" if method == "POST" else None)
            assert status == 404 and headers.get_content_type() == "application/json"
            assert "first" not in text and "script" not in text
    assert studio.raw("GET", f"/{call}?token={TOKEN}")[0] == 404
    assert studio.raw("GET", "/", Cookie=f"token={TOKEN}", Authorization=f"Bearer {TOKEN}")[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "0.0.0.0", "10.0.0.1"]
)
def test_another_host_is_refused(studio, host):
    assert all(
        studio.raw("GET", f"/{TOKEN}/{call}", Host=host)[0] == 403 for call in ("", "api/runs", "live?run=first")
    )


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1", "file://"]
)
def test_another_page_is_refused(studio, origin):
    body = json.dumps({"name": "new", "text": "x"}).encode()
    for call in ("api/start", "api/patch", "api/stop"):
        assert studio.raw("POST", f"/{TOKEN}/{call}", body, Origin=origin, content_type="application/json")[0] == 403
    assert studio.raw("GET", f"/{TOKEN}/api/runs", Origin=origin)[0] == 403
    own = f"http://127.0.0.1:{studio.port}"
    assert studio.raw("GET", f"/{TOKEN}/api/runs", Origin=own)[0] == 200


def test_a_form_of_another_page_changes_nothing(studio):
    """A form can send no JSON type, and sends its Origin; without one the type alone is refused."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        status, _, text = studio.raw("POST", f"/{TOKEN}/api/stop", b'{"run": "first"}', content_type=kind)
        assert status == 400 and "accepted is application/json" in text


OUT = ["..", "../runs/first", "/etc", "first/../first", "first/..", "./first", "first/", "//first", ".", "", "first\0",
       "..\\first", "%2e%2e/first", "first/checkpoints", "studio", "link", "../../outside",
       "a/../../../outside"]  # fmt: skip


@pytest.mark.parametrize("name", OUT)
def test_a_name_that_leads_elsewhere_is_no_run(studio, name):
    outside = studio.folder.parent / "outside"
    (studio.folder / "first").rename(outside)
    (studio.folder / "link").symlink_to(outside)
    outside_record = (outside / "run.json").read_text(encoding="utf-8")
    (studio.folder.parent / "outside.log").write_text("said outside", encoding="utf-8")
    for call in ("run", "answers", "rows", "row", "tokens", "beginning", "said"):
        reply = studio.get(call, run=name, row="row 1")
        assert set(reply) in ({"error"}, {"presets"}) or reply == {"begun": False, "going": False, "said": ""}, call
    for call in ("resume", "retrain", "stop", "patch", "add", "ask", "why"):
        assert set(studio.post(call, run=name, row="row 1", change={"drop": True}, content={})) == {"error"}
    assert studio.raw("GET", f"/{TOKEN}/live?run={quote(name)}")[0] in (400, 404)
    assert (outside / "run.json").read_text(encoding="utf-8") == outside_record
    assert not (outside / "rows.patch.jsonl").exists()


PATHS = ["../run.json", "..%2frun.json", "%2e%2e/run.json", "....//run.json", "/etc/passwd", "%2fetc%2fpasswd",
         "..\\run.json", "index.html/../../run.json", "index.html%00.png", "link.html", "sub/index.html"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_report_gives_no_file_but_its_own(studio, path):
    report = studio.folder / "first" / "report"
    report.mkdir(exist_ok=True)
    (report / "index.html").write_text("fine", encoding="utf-8")
    assert studio.raw("GET", f"/{TOKEN}/report/first/index.html")[::2] == (200, "fine")
    if path == "link.html":
        (report / "link.html").symlink_to("/etc/passwd")
    status, _, text = studio.raw("GET", f"/{TOKEN}/report/first/{path}")
    assert status in (400, 404) and "root:" not in text and "ghosttune" not in text.replace("ghosttune train", "")


def test_a_stranger_s_report_runs_nothing(studio):
    report = studio.folder / "first" / "report"
    report.mkdir(exist_ok=True)
    (report / "index.html").write_text(NASTY, encoding="utf-8")
    policy = studio.raw("GET", f"/{TOKEN}/report/first/index.html")[1]["content-security-policy"]
    assert policy.startswith("sandbox") and "script" not in policy.replace("allow-downloads", "")


@pytest.mark.parametrize(
    "name", ["..", "../x", "/tmp/x", "a/../../b", "studio", "studio/x", "-x", ".x", "a b", "a\n", "", "x" * 200]
)
def test_a_new_run_stays_in_the_folder(studio, name):
    text = (studio.folder / "first" / "config.yaml").read_text(encoding="utf-8")
    before = sorted(path for path in studio.folder.parent.rglob("*") if "first" not in path.parts)
    assert "error" in studio.post("start", name=name, text=text)
    assert sorted(path for path in studio.folder.parent.rglob("*") if "first" not in path.parts) == before


def test_a_new_run_behind_a_link_is_refused(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "runs" / "way").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="outside"):
        Folder(tmp_path / "runs").new("way/new")


def test_files_that_lead_out_of_a_run_are_refused(studio):
    run = RunDir(studio.folder / "first")
    run.patch.symlink_to("/etc/passwd")
    assert "leads out of itself" in studio.get("run", run="first")["error"]
    assert "leads out of itself" in studio.get("rows", run="first")["error"]


def test_code_of_a_model_is_not_run_from_the_studio(studio):
    text = "model: {name: builtin:tiny, trust_remote_code: true}\ndata: {train: {path: builtin:rows}}\n"
    assert "lets code of the model run" in studio.post("start", name="x", text=text)["error"]
    assert not (studio.folder / "studio").exists()


def test_every_answer_has_the_policy(studio):
    for call in ("", "main.js", "api/runs", "api/nothing", "nothing"):
        headers = studio.raw("GET", f"/{TOKEN}/{call}")[1]
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert headers["referrer-policy"] == "no-referrer" and headers["x-content-type-options"] == "nosniff"


def test_the_page_makes_text_nodes_only():
    """No way from text to markup or code is written in any of the page's files, and nothing comes from elsewhere."""
    for path in sorted(Path(studio_app.STATIC).iterdir()):
        text = path.read_text(encoding="utf-8")
        ways = r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|srcdoc|\beval\(|Function\(|Contextual"
        assert not re.search(ways, text), path.name
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path.name
        assert " style=" not in text and " onclick=" not in text


def test_huge_and_broken_bodies_are_refused(studio):
    def post(body: bytes) -> tuple[int, str]:
        return studio.raw("POST", f"/{TOKEN}/api/check", body, content_type="application/json")[::2]

    assert post(b"{")[0] == post(b"[]")[0] == post(b"\xff")[0] == post(b"")[0] == 400
    assert post(b'{"text": "' + b"x" * (5 << 20) + b'"}')[0] == 400
    assert "longer than" in post(b'{"text": "' + b"x" * (1 << 20) + b'"}')[1]


def test_half_a_request_keeps_nobody_out(studio):
    with socket.create_connection(("127.0.0.1", studio.port)) as half:
        half.sendall(f"GET /{TOKEN}/live?run=first HTTP/1.1\r\nHost: 127".encode())
        assert studio.raw("GET", f"/{TOKEN}/api/runs")[0] == 200


ODD = [None, 0, -1, 1e308, True, "", "x", "\0", "first", [], ["first"], [[]], {}, {"a": {"b": []}}, "9" * 5000, NASTY]


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize("call", [*READING, *DOING, "ask"])
def test_odd_values_are_refused_and_break_nothing(studio, call):
    """Every argument of every call with values of every kind: never a 500, and the run stays what it was."""
    names = [
        "run",
        "row",
        "change",
        "content",
        "split",
        "messages",
        "answer",
        "name",
        "text",
        "preset",
        "max_new_tokens",
    ]
    names += ["sort", "descending", "low", "high", "source", "changed", "offset", "limit"]
    right = {
        "run": "first",
        "row": "row 1",
        "name": "new",
        "text": "a: 1",
        "messages": [],
        "answer": "",
        "change": {"x": 1},
    }
    if call == "tokens":
        right["row"] = "nobody"  # a right one opens the model
    for name in names:
        for value in ODD:
            given = {**right, name: value}
            if call in READING:
                path = f"/{TOKEN}/api/{call}?" + "&".join(f"{key}={quote(str(value))}" for key, value in given.items())
                status = studio.raw("GET", path)[0]
            else:
                body = json.dumps(given).encode()
                status = studio.raw("POST", f"/{TOKEN}/api/{call}", body, content_type="application/json")[0]
            assert status in (200, 400, 404), (call, name, value)
    assert studio.get("runs")["runs"][0]["state"] == "finished"
