"""One model behind OpenAI's HTTP calls: one queue, one worker, and a page to talk in. Needs the extra `serve`."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.responses import Response as HttpResponse

from ghosttune.data.encoding import Encoder
from ghosttune.data.records import Turn
from ghosttune.data.templates import Template
from ghosttune.errors import GhosttuneError
from ghosttune.inference.pipeline import Pipeline
from ghosttune.inference.protocol import (
    ChatRequest,
    CompletionRequest,
    Request,
    RequestError,
    Response,
    event,
    model_list,
    parsed,
)
from ghosttune.inference.queueing import Full, Job, Worker
from ghosttune.inference.streaming import Reply

PAGE = Path(__file__).with_name("page.html")

LOOK_SECONDS = 0.1
"""How often a request that waits looks whether its client is still there."""


@dataclass(frozen=True)
class Limits:
    """What a request may cost."""

    waiting: int = 16
    """Requests that may wait for the one being answered; more get 429."""
    body_bytes: int = 256 * 1024
    max_new_tokens: int = 1024


DEFAULT_LIMITS = Limits()


def create_app(pipeline: Pipeline, name: str, limits: Limits = DEFAULT_LIMITS, api_key: str | None = None) -> FastAPI:
    """The application; `name` is what clients call the model."""
    server = Server(pipeline, name, limits, api_key)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.worker.close)

    app = FastAPI(title="ghosttune", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(RequestError, _refused)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _no_such_call)  # type: ignore[arg-type]
    app.add_api_route("/", server.page, methods=["GET"], response_model=None)
    app.add_api_route("/health", server.health, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models", server.models, methods=["GET"], response_model=None)
    app.add_api_route("/v1/chat/completions", server.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", server.completion, methods=["POST"], response_model=None)
    return app


async def _refused(request: HttpRequest, error: RequestError) -> JSONResponse:
    return JSONResponse(error.body, error.status, {"Retry-After": "1"} if error.status == 429 else None)


async def _no_such_call(request: HttpRequest, error: HTTPException) -> JSONResponse:
    refused = RequestError(f"{request.method} {request.url.path}: {error.detail}", error.status_code)
    return JSONResponse(refused.body, refused.status, error.headers)


class Server:
    """What the calls share: the model, its worker and the limits."""

    def __init__(self, pipeline: Pipeline, name: str, limits: Limits, api_key: str | None):
        self.pipeline = pipeline
        self.name = name
        self.limits = limits
        self.api_key = api_key
        self.worker = Worker(limits.waiting)
        template = Template("plain", pipeline.encoder.template.tokenizer)
        self._plain = Encoder(template, pipeline.encoder.max_length, "completion")

    async def page(self, request: HttpRequest) -> HttpResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    async def health(self, request: HttpRequest) -> HttpResponse:
        busy, waiting = self.worker.busy, self.worker.waiting
        return JSONResponse({"status": "ok", "model": self.name, "answering": busy, "waiting": waiting})

    async def models(self, request: HttpRequest) -> HttpResponse:
        self._require_key(request)
        return JSONResponse(model_list([self.name]))

    async def chat(self, request: HttpRequest) -> HttpResponse:
        asked = parsed(await self._body(request), ChatRequest)
        return await self._answer(request, asked, self.pipeline.encoder, asked.turns)

    async def completion(self, request: HttpRequest) -> HttpResponse:
        asked = parsed(await self._body(request), CompletionRequest)
        return await self._answer(request, asked, self._plain, (Turn("user", asked.prompt),))

    async def _body(self, request: HttpRequest) -> bytes:
        """The body of a request that may be answered at all."""
        self._require_key(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which a browser sends from a foreign page only after asking us, in vain
            raise RequestError(f"content-type is {kind or 'missing'}, accepted is application/json")
        body = b""
        async for block in request.stream():
            body += block
            if len(body) > self.limits.body_bytes:
                raise RequestError(f"the body has more than {self.limits.body_bytes} bytes")
        return body

    def _require_key(self, request: HttpRequest) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.api_key is not None and not hmac.compare_digest(given.encode("latin-1"), self.api_key.encode()):
            raise RequestError("the API key is missing or wrong", 401, kind="authentication_error")

    async def _answer(
        self, request: HttpRequest, asked: Request, encoder: Encoder, turns: tuple[Turn, ...]
    ) -> HttpResponse:
        if asked.model != self.name:
            raise RequestError(f"the model {asked.model!r} is not served here; {self.name!r} is", 404, "model")
        ids, wanted = self._prompt(asked, encoder, turns)
        heard: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(kind: str, value: Any) -> None:
            loop.call_soon_threadsafe(heard.put_nowait, (kind, value))

        def work(job: Job) -> Reply:
            def said(piece: str) -> bool:
                if piece:
                    tell("piece", piece)
                return job.left

            settings: dict[str, Any] = {"sampling": asked.sampling, "stops": asked.stops}
            return self.pipeline.reply(ids, max_new_tokens=wanted, tell=said, **settings)

        job = Job(work, tell)
        try:
            self.worker.submit(job)
        except Full:
            raise RequestError(f"{self.limits.waiting} requests wait already; try again", 429, kind="busy") from None
        response = Response(self.name, isinstance(asked, ChatRequest))
        if asked.stream:
            events = self._events(job, heard, response, asked.wants_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        return await self._whole(request, job, heard, response)

    def _prompt(self, asked: Request, encoder: Encoder, turns: tuple[Turn, ...]) -> tuple[list[int], int]:
        """Token ids and the longest answer; RequestError when they do not fit: nothing is cut unasked."""
        wanted = asked.wanted_tokens or self.pipeline.max_new_tokens
        if wanted > self.limits.max_new_tokens:
            raise RequestError(f"max_tokens is {wanted}, at most {self.limits.max_new_tokens}", param="max_tokens")
        try:
            length = encoder.prompt_length(turns)
            most = encoder.max_length - self.pipeline.room(wanted)
            if not 0 < length <= most:
                raise RequestError(
                    f"the prompt has {length} tokens; 1 to {max(0, most)} fit beside an answer of up to {wanted}"
                )
            return encoder.prompt_ids(turns), wanted
        except GhosttuneError as error:  # what the chat template refuses
            raise RequestError(str(error)) from error

    async def _events(
        self, job: Job, heard: asyncio.Queue[tuple[str, Any]], response: Response, with_usage: bool
    ) -> AsyncIterator[str]:
        """A client that leaves ends this generator, and with it the job."""
        try:
            for opening in response.first():
                yield event(opening)
            while True:
                kind, value = await heard.get()
                if kind == "piece":
                    yield event(response.piece(value))
                    continue
                ending = response.last(value, with_usage) if kind == "result" else [_failed(value).body]
                for closing in ending:
                    yield event(closing)
                yield event("[DONE]")
                return
        finally:
            self.worker.withdraw(job)

    async def _whole(
        self, request: HttpRequest, job: Job, heard: asyncio.Queue[tuple[str, Any]], response: Response
    ) -> HttpResponse:
        try:
            while True:
                try:
                    kind, value = await asyncio.wait_for(heard.get(), LOOK_SECONDS)
                except TimeoutError:
                    if await request.is_disconnected():
                        return HttpResponse(status_code=499)  # nobody reads it
                    continue
                if kind == "result":
                    return JSONResponse(response.whole(value))
                if kind == "error":
                    raise _failed(value)
        finally:
            self.worker.withdraw(job)


def _failed(error: Exception) -> RequestError:
    return RequestError(f"the answer failed: {type(error).__name__}: {error}", 500, kind="server_error")
