"""One model behind OpenAI's HTTP calls: one queue, one worker, and a page to talk in. Needs the extra `serve`."""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from ghosttune.data.encoding import Encoder
from ghosttune.data.templates import Template
from ghosttune.data.turns import TOOLS
from ghosttune.errors import GhosttuneError
from ghosttune.inference.access import Access, Guarded
from ghosttune.inference.answers import Response, error_body, event, model_list, refusal
from ghosttune.inference.calling import Calling
from ghosttune.inference.openapi import document
from ghosttune.inference.pipeline import Pipeline
from ghosttune.inference.protocol import ChatRequest, CompletionRequest, Request, RequestError, parsed
from ghosttune.inference.queueing import Closed, Full, Job, Worker
from ghosttune.inference.sampling import Sampling
from ghosttune.inference.streaming import Reply

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def _digests(tag: str) -> str:
    """What a browser may run or apply of the page: the text between each pair of these tags, and nothing else."""
    inside = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in inside)


PAGE_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; script-src {_digests('script')}; style-src {_digests('style')}; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Limits:
    """What a request may cost."""

    waiting: int = 16
    """Requests that may wait for the one being answered, and for the one being read; more get 429."""
    body_bytes: int = 256 * 1024
    max_new_tokens: int = 1024
    reading_seconds: float = 10
    """In which a request is read, the wait for those before it included: templates come with the model."""


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Asked:
    """A request as far as the model is concerned."""

    request: Request
    ids: list[int]
    """Token ids of the prompt."""
    max_new_tokens: int
    sampling: Sampling
    calling: Calling | None
    """Reads calls from the answer; None where no tools are given."""


def create_app(
    pipeline: Pipeline, name: str, limits: Limits = DEFAULT_LIMITS, access: Access | None = None
) -> Starlette:
    """The application; `name` is what clients call the model. `app.state.close()` ends its work."""
    server = Server(pipeline, name, limits, access or Access())

    app = Starlette(
        routes=[
            Route("/", server.page),
            Route("/health", server.health),
            Route("/openapi.json", server.document),
            Route("/v1/models", server.models),
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
            Route("/v1/completions", server.completion, methods=["POST"]),
        ],
        exception_handlers={RequestError: _refused, HTTPException: _no_such_call, ClientDisconnect: _left},
        middleware=[Middleware(Guarded, access=server.access)],
    )
    app.router.redirect_slashes = False
    app.state.close = server.close
    return app


async def _refused(request: HttpRequest, error: Exception) -> HttpResponse:
    assert isinstance(error, RequestError)
    return refusal(error)


async def _no_such_call(request: HttpRequest, error: Exception) -> HttpResponse:
    assert isinstance(error, HTTPException)
    answer = refusal(RequestError(f"{request.method} {request.url.path}: {error.detail}", error.status_code))
    answer.headers.update(error.headers or {})
    return answer


async def _left(request: HttpRequest, error: Exception) -> HttpResponse:
    return HttpResponse(status_code=499)  # nobody reads it


class Told:
    """What a job tells from its thread, heard on the event loop."""

    def __init__(self, work: Callable[[Job], Any]):
        self.job = Job(work, self._tell)
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    def _tell(self, kind: str, value: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it everybody who could hear
            self._loop.call_soon_threadsafe(self._heard.put_nowait, (kind, value))

    async def next(self) -> tuple[str, Any]:
        """`piece`, `result` or `error`, and what it is."""
        return await self._heard.get()

    async def result(self, request: HttpRequest) -> Any:
        """What the job gives; raises its error, and ClientDisconnect as soon as nobody waits for it."""
        leaving = asyncio.create_task(self._hear_leaving(request))
        try:
            while True:
                kind, value = await self.next()
                if kind == "error":
                    raise value
                if kind == "result":
                    return value
        finally:
            leaving.cancel()

    async def _hear_leaving(self, request: HttpRequest) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._heard.put_nowait(("error", ClientDisconnect()))


class Server:
    """What the calls share: the model, its workers and the limits."""

    def __init__(self, pipeline: Pipeline, name: str, limits: Limits, access: Access):
        self.pipeline = pipeline
        self.name = name
        self.limits = limits
        self.access = access
        self.reader = Worker("reads", limits.waiting)
        self.writer = Worker("answers", limits.waiting)
        plain = Encoder(Template("plain", pipeline.encoder.tokenizer), pipeline.encoder.max_length, "completion")
        self._encoders: dict[type[Request], Encoder] = {ChatRequest: pipeline.encoder, CompletionRequest: plain}

    def close(self) -> None:
        """Ends what is being done, as soon as that is possible."""
        self.writer.close()
        self.reader.close(1)

    async def page(self, request: HttpRequest) -> HttpResponse:
        return HTMLResponse(PAGE, headers=PAGE_HEADERS)

    async def health(self, request: HttpRequest) -> HttpResponse:
        busy, waiting = self.writer.busy, self.writer.waiting
        return JSONResponse({"status": "ok", "model": self.name, "answering": busy, "waiting": waiting})

    async def document(self, request: HttpRequest) -> HttpResponse:
        return JSONResponse(document(self.name, self.limits.max_new_tokens, self.access.api_key is not None))

    async def models(self, request: HttpRequest) -> HttpResponse:
        self.access.require_key(request)
        return JSONResponse(model_list([self.name]))

    async def chat(self, request: HttpRequest) -> HttpResponse:
        return await self._answer(request, await self._asked(request, ChatRequest))

    async def completion(self, request: HttpRequest) -> HttpResponse:
        return await self._answer(request, await self._asked(request, CompletionRequest))

    async def _asked(self, request: HttpRequest, kind: type[Request]) -> Asked:
        """The request, read in a thread of its own: whatever it holds, others are heard meanwhile."""
        self.access.require_key(request)
        if self.reader.is_full:  # a body that is not read costs nothing
            raise self._busy
        told = Told(partial(self._read, await self._body(request), kind))
        try:
            async with asyncio.timeout(self.limits.reading_seconds):
                self._submit(self.reader, told.job)
                return await told.result(request)
        except Closed as error:
            raise _failed(error) from None
        except TimeoutError:
            seconds = self.limits.reading_seconds
            raise RequestError(f"the request was not read within {seconds:g} s", 503, kind="busy") from None
        finally:
            self.reader.withdraw(told.job)

    async def _body(self, request: HttpRequest) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which a browser sends from a foreign page only after asking us, in vain
            raise RequestError(f"content-type is {kind or 'missing'}, accepted is application/json")
        body = bytearray()
        async for block in request.stream():
            body += block
            if len(body) > self.limits.body_bytes:
                raise RequestError(f"the body has more than {self.limits.body_bytes} bytes")
        return bytes(body)

    def _read(self, body: bytes, kind: type[Request], job: Job) -> Asked:
        """RequestError for what cannot be answered; nothing is cut unasked."""
        asked = parsed(body, kind)
        if asked.model != self.name:
            raise RequestError(f"the model {asked.model!r} is not served here; {self.name!r} is", 404, "model")
        wanted = asked.wanted_tokens or min(self.pipeline.max_new_tokens, self.limits.max_new_tokens)
        if wanted > self.limits.max_new_tokens:
            raise RequestError(f"max_tokens is {wanted}, at most {self.limits.max_new_tokens}", param="max_tokens")
        encoder = self._encoders[kind]
        try:
            turns, sampling = asked.turns, asked.sampling
            ids = encoder.whole_prompt_ids(turns)
            calling = Calling(encoder.template, turns) if turns[0].role == TOOLS else None
        except GhosttuneError as error:  # what sampling, or the chat template, does not take
            raise RequestError(str(error)) from error
        most = encoder.max_length - self.pipeline.room(wanted)
        if not 0 < len(ids) <= most:
            raise RequestError(
                f"the prompt has {len(ids)} tokens; 1 to {max(0, most)} fit beside an answer of up to {wanted}"
            )
        return Asked(asked, ids, wanted, sampling, calling)

    async def _answer(self, request: HttpRequest, asked: Asked) -> HttpResponse:
        told = Told(partial(self._write, asked))
        try:
            self._submit(self.writer, told.job)
        except Closed as error:
            raise _failed(error) from None
        response = Response(self.name, isinstance(asked.request, ChatRequest))
        if asked.request.stream:
            events = self._events(told, response, asked.request.wants_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        try:
            return JSONResponse(response.whole(await told.result(request)))
        except ClientDisconnect:
            raise
        except Exception as error:
            raise _failed(error) from error
        finally:
            self.writer.withdraw(told.job)

    def _write(self, asked: Asked, job: Job) -> Reply:
        def said(piece: str) -> bool:
            if piece:
                job.tell("piece", piece)
            return job.left

        settings: dict[str, Any] = {
            "sampling": asked.sampling,
            "stops": asked.request.stops,
            "calling": asked.calling,
        }
        return self.pipeline.reply(asked.ids, max_new_tokens=asked.max_new_tokens, tell=said, **settings)

    def _submit(self, worker: Worker, job: Job) -> None:
        try:
            worker.submit(job)
        except Full:
            raise self._busy from None

    @property
    def _busy(self) -> RequestError:
        return RequestError(f"{self.limits.waiting} requests wait already; try again", 429, kind="busy")

    async def _events(self, told: Told, response: Response, with_usage: bool) -> AsyncIterator[str]:
        """A client that leaves ends this generator, and with it the job."""
        try:
            for opening in response.first():
                yield event(opening)
            while True:
                kind, value = await told.next()
                if kind == "piece":
                    yield event(response.piece(value))
                    continue
                ending = response.last(value, with_usage) if kind == "result" else [error_body(_failed(value))]
                for closing in ending:
                    yield event(closing)
                yield event("[DONE]")
                return
        finally:
            self.writer.withdraw(told.job)


def _failed(error: Exception) -> RequestError:
    if isinstance(error, Closed):
        return RequestError("the server is being ended", 503, kind="server_error")
    return RequestError(f"the answer failed: {type(error).__name__}: {error}", 500, kind="server_error")
