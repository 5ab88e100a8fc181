"""What the studio answers: its page, the calls behind it, streams of what happens in runs, and reports."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ghosttune.errors import GhosttuneError, InputError, RunError
from ghosttune.foreign import read_json
from ghosttune.inference.access import Access
from ghosttune.inference.queueing import Job
from ghosttune.inference.told import Told
from ghosttune.reports.page import style_sheet
from ghosttune.studio import editing, loop, patches, processes, runs
from ghosttune.studio.folder import Folder, Unknown
from ghosttune.studio.gate import REPORT_POLICY, Gate
from ghosttune.studio.live import Follower, as_event
from ghosttune.studio.rows import Asked, Indexes
from ghosttune.studio.talk import LONGEST, Talk, asked_in

STATIC = Path(__file__).parent / "static"

FILES = {"": ("index.html", "text/html"), "studio.css": ("studio.css", "text/css")} | {
    name: (name, "text/javascript") for name in sorted(path.name for path in STATIC.glob("*.js"))
}
"""What is answered as a file -> its name and type; no other file of this package is."""

LARGEST = 4 << 20
"""Bytes of a request's body."""

LOOK_AGAIN = 0.5
"""Seconds between two looks at a run's files."""

STILL_THERE = 15
"""Seconds after which a stream in which nothing happens says so, lest somebody between takes it for dead."""

Call = Callable[["Studio", Mapping[str, Any]], Any]


class Studio:
    """What the calls share: the folder, the rows that were read, and the model that is open."""

    def __init__(self, folder: Folder, device: str = "auto"):
        self.folder = folder
        self.indexes = Indexes(folder)
        self.talk = Talk(device)
        self.ending = threading.Event()

    def drain(self, seconds: float, hurried: Callable[[], bool]) -> None:
        """Nothing here is worth waiting for: runs go on without us."""

    def close(self) -> None:
        """Ends the streams."""
        self.ending.set()


def create_app(folder: Folder, token: str, access: Access, device: str = "auto") -> Starlette:
    """The application, everything below `/token/`; `app.state.close()` ends its streams."""
    studio = Studio(folder, device)
    read = [Route(f"/api/{name}", _called(studio, call)) for name, call in READING.items()]
    done = [Route(f"/api/{name}", _called(studio, call), methods=["POST"]) for name, call in DOING.items()]
    app = Starlette(
        routes=[
            *(Route(f"/{path}", _file) for path in FILES),
            *read,
            *done,
            Route("/api/ask", _ask(studio), methods=["POST"]),
            Route("/live", _live(studio)),
            Route("/report/{place:path}", _report(studio)),
        ],
        exception_handlers={GhosttuneError: _wrong, HTTPException: _no_such_call, Exception: _failed},
        middleware=[Middleware(Gate, token=token, access=access)],
    )
    app.router.redirect_slashes = False
    app.state.drain, app.state.close = studio.drain, studio.close
    return app


async def _file(request: Request) -> Response:
    name, kind = FILES[request.scope["path"].removeprefix("/")]
    text = await run_in_threadpool((STATIC / name).read_text, "utf-8")
    return PlainTextResponse(style_sheet() + text if kind == "text/css" else text, media_type=kind)


def _called(studio: Studio, call: Call) -> Callable[[Request], Any]:
    """The endpoint of a call: what it is given stands in the address, or as JSON in the body."""

    async def endpoint(request: Request) -> Response:
        given = dict(request.query_params) if request.method != "POST" else await _body(request)
        return JSONResponse(await run_in_threadpool(call, studio, given))

    return endpoint


async def _body(request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which a page of another origin may not send unasked
        raise InputError(f"content-type is {kind or 'missing'}, accepted is application/json")
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > LARGEST:
            raise InputError(f"the body has more than {LARGEST:,} bytes")
    try:
        given = read_json(body.decode())
    except ValueError as error:
        raise InputError(f"the body is no JSON: {error}") from error
    if not isinstance(given, dict):
        raise InputError("the body must be an object")
    return given


async def _wrong(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 404 if isinstance(error, Unknown) else 400)


async def _no_such_call(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": _said_of(error)}, 500)


def _said_of(error: Exception) -> str:
    """Out of memory, say: the page tells it where it was asked."""
    return str(error) if isinstance(error, GhosttuneError) else f"this failed: {type(error).__name__}: {error}"


def _ask(studio: Studio) -> Callable[[Request], Any]:
    """Answers while they are written: events `adapter` and `base` with a piece of text, last `done` or `failed`."""

    async def endpoint(request: Request) -> Response:
        work = await run_in_threadpool(_answering, studio, await _body(request))
        return StreamingResponse(_heard(Told(partial(Job, work))), media_type="text/event-stream")

    return endpoint


def _answering(studio: Studio, given: Mapping[str, Any]) -> Callable[[Job], Any]:
    """What is to be done for an answer; it ends early where nobody listens any more."""
    run, asked = studio.folder.run(_text(given, "run")), asked_in(given.get("messages"))
    longest = _number(given, "max_new_tokens", int, 128)
    if not 0 < longest <= LONGEST:
        raise InputError(f"an answer has 1 to {LONGEST} tokens, asked are {longest}")

    def work(job: Job) -> Any:
        def tell(who: str, piece: str) -> bool:
            if piece:
                job.tell("piece", (who, piece))
            return job.left or studio.ending.is_set()

        return studio.talk.answers(run, asked, longest, tell)

    return work


async def _heard(told: Told) -> AsyncIterator[str]:
    """What the job tells from a thread of its own, as events; a reader who leaves ends this, and with it the job."""
    threading.Thread(target=told.job.do, name="ghosttune-answer", daemon=True).start()
    try:
        while True:
            kind, value = await told.next()
            if kind == "piece":
                yield as_event(*value)
                continue
            yield as_event("failed", _said_of(value)) if kind == "error" else as_event("done", value)
            return
    finally:
        told.job.leave()


def _live(studio: Studio) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        run = await run_in_threadpool(studio.folder.run, request.query_params.get("run", ""))
        follower = await run_in_threadpool(Follower, run)
        return StreamingResponse(_told(studio, follower), media_type="text/event-stream")

    return endpoint


async def _told(studio: Studio, follower: Follower) -> AsyncIterator[str]:
    """What is new, until the reader leaves or the studio ends."""
    quiet = 0.0
    while not studio.ending.is_set():
        news = await run_in_threadpool(lambda: list(follower.news()))
        for kind, value in news:
            yield as_event(kind, value)
        quiet = 0.0 if news else quiet + LOOK_AGAIN
        if quiet >= STILL_THERE:
            quiet = 0.0
            yield ": nothing new\n\n"
        await asyncio.sleep(LOOK_AGAIN)


def _report(studio: Studio) -> Callable[[Request], Any]:
    """The files of a run's report: `/report/RUN/FILE`."""

    async def endpoint(request: Request) -> Response:
        name, _, file = request.path_params["place"].rpartition("/")
        run = await run_in_threadpool(studio.folder.run, name)
        known = {path.name: path for path in run.report.iterdir() if path.is_file()} if run.report.is_dir() else {}
        if file not in known:
            raise HTTPException(404, f"the report of {name} has no file {file!r}")
        return FileResponse(known[file], headers={"Content-Security-Policy": REPORT_POLICY})

    return endpoint


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value:
        raise InputError(f"{name} must be text, is {value!r}")
    return value


def _number(given: Mapping[str, Any], name: str, kind: Callable[[Any], Any], default: Any) -> Any:
    value = given.get(name)
    if value in (None, ""):
        return default
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a number, is {value!r}") from None


def _runs(studio: Studio, given: Mapping[str, Any]) -> Any:
    return {"folder": str(studio.folder.path), "runs": runs.table(studio.folder)}


def _run(studio: Studio, given: Mapping[str, Any]) -> Any:
    name = _text(given, "run")
    return runs.summary(studio.folder, name) | {"said": processes.said(studio.folder, name)}


def _answers(studio: Studio, given: Mapping[str, Any]) -> Any:
    return runs.answers(studio.folder, _text(given, "run"))


def _said(studio: Studio, given: Mapping[str, Any]) -> Any:
    """How a run that has just been started is getting on, before it has a directory."""
    name = _text(given, "run")
    going = processes.started_here(studio.folder, name) is not None
    return {"begun": name in studio.folder.names(), "going": going, "said": processes.said(studio.folder, name)}


def _beginning(studio: Studio, given: Mapping[str, Any]) -> Any:
    preset, run = given.get("preset"), given.get("run")
    if not (preset or run):
        return {"presets": editing.beginnings()}
    return {"text": editing.beginning(studio.folder, preset, run)}


def _settings(studio: Studio, given: Mapping[str, Any]) -> Any:
    return {"settings": editing.settings()}


def _check(studio: Studio, given: Mapping[str, Any]) -> Any:
    return {"problems": editing.faults(str(given.get("text", "")))}


def _start(studio: Studio, given: Mapping[str, Any]) -> Any:
    name, text = _text(given, "name"), _text(given, "text")
    if problems := editing.faults(text):
        raise InputError(f"{len(problems)} settings are wrong, the first: {problems[0]['message']}")
    processes.start(studio.folder, name, text)
    return {"run": name}


def _stop(studio: Studio, given: Mapping[str, Any]) -> Any:
    processes.stop(studio.folder, _text(given, "run"))
    return {}


def _resume(studio: Studio, given: Mapping[str, Any]) -> Any:
    name = _text(given, "run")
    run = studio.folder.run(name)
    if (state := runs.state_of(run, run.read_record())) not in ("stopped", "crashed", "failed"):
        raise RunError(f"{name} is {state}; only what was stopped, has failed or has crashed is resumed")
    processes.resume(studio.folder, name)
    return {}


def _rows(studio: Studio, given: Mapping[str, Any]) -> Any:
    run = studio.folder.run(_text(given, "run"))
    lines = patches.lines_of(run)
    return {**studio.indexes.of(run).page(_asked(given, lines)), "patch": lines}


def _asked(given: Mapping[str, Any], lines: Sequence[patches.Line]) -> Asked:
    return Asked(
        text=str(given.get("text", "")),
        sort=str(given.get("sort") or "place"),
        descending=given.get("descending") in ("true", True),
        low=_number(given, "low", float, None),
        high=_number(given, "high", float, None),
        source=str(given.get("source", "")),
        only=frozenset(line["example_id"] for line in lines) if given.get("changed") in ("true", True) else None,
        offset=_number(given, "offset", int, 0),
        limit=_number(given, "limit", int, 50),
    )


def _drop(studio: Studio, given: Mapping[str, Any]) -> Any:
    """Drops every row that is found by what is asked, not only those of the page."""
    name = _text(given, "run")
    run = studio.folder.run(name)
    found = studio.indexes.of(run).ids(_asked(given, patches.lines_of(run)))
    return {"patch": patches.drop(studio.folder, name, found), "dropped": len(found)}


def _clear(studio: Studio, given: Mapping[str, Any]) -> Any:
    return {"patch": patches.clear(studio.folder, _text(given, "run"))}


def _row(studio: Studio, given: Mapping[str, Any]) -> Any:
    run, name = studio.folder.run(_text(given, "run")), _text(given, "row")
    noted = [line for line in patches.lines_of(run) if line["example_id"] == name]
    return {**studio.indexes.of(run).row(name), "change": noted[0] if noted else {}}


def _tokens(studio: Studio, given: Mapping[str, Any]) -> Any:
    run, name = studio.folder.run(_text(given, "run")), _text(given, "row")
    studio.indexes.of(run).place(name)
    return studio.talk.tokens(run, name)


def _measure(studio: Studio, given: Mapping[str, Any]) -> Any:
    run = studio.folder.run(_text(given, "run"))
    return {"rows": studio.talk.measure(studio.folder, run, _text(given, "what"))}


def _patch(studio: Studio, given: Mapping[str, Any]) -> Any:
    name, row, wanted = _text(given, "run"), _text(given, "row"), given.get("change")
    if not isinstance(wanted, dict):
        raise InputError("change must be an object")
    index = studio.indexes.of(studio.folder.run(name))
    if row not in index.places and not wanted:
        return {"patch": patches.remove(studio.folder, name, row)}
    return {"patch": patches.change(studio.folder, name, index.record(row), wanted)}


def _add(studio: Studio, given: Mapping[str, Any]) -> Any:
    row = given.get("content")
    if not isinstance(row, dict):
        raise InputError("content must be an object: the row")
    return {"patch": patches.add(studio.folder, _text(given, "run"), row, str(given.get("split", "train")))}


def _why(studio: Studio, given: Mapping[str, Any]) -> Any:
    run = studio.folder.run(_text(given, "run"))
    return studio.talk.why(run, given.get("messages"), _text(given, "answer"))


def _retrain(studio: Studio, given: Mapping[str, Any]) -> Any:
    name = _text(given, "run")
    index = studio.indexes.of(studio.folder.run(name))
    return loop.retrain(studio.folder, name, index, given.get("control") is not False)


def _loops(studio: Studio, given: Mapping[str, Any]) -> Any:
    return {"loops": loop.loops(studio.folder), "history": studio.folder.past()[::-1][:200]}


READING: dict[str, Call] = {
    "runs": _runs,
    "run": _run,
    "answers": _answers,
    "said": _said,
    "beginning": _beginning,
    "settings": _settings,
    "rows": _rows,
    "row": _row,
    "tokens": _tokens,
    "loops": _loops,
}
"""Calls that change nothing."""

DOING: dict[str, Call] = {
    "check": _check,
    "start": _start,
    "stop": _stop,
    "resume": _resume,
    "measure": _measure,
    "drop": _drop,
    "clear": _clear,
    "patch": _patch,
    "add": _add,
    "why": _why,
    "retrain": _retrain,
}
