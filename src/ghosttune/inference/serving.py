"""Models behind OpenAI's HTTP calls, and a page to talk in. Needs the extra `serve`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from string import ascii_letters, digits
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from ghosttune.errors import listed
from ghosttune.inference.access import Access, Guarded
from ghosttune.inference.answers import Response, error_body, event, model_list, refusal
from ghosttune.inference.embeddings import EmbeddingRequest
from ghosttune.inference.measuring import CONTENT_TYPE_LATEST, Counted, Metrics
from ghosttune.inference.openapi import document
from ghosttune.inference.page import PAGE, PAGE_HEADERS
from ghosttune.inference.pipeline import Pipeline
from ghosttune.inference.protocol import ChatRequest, CompletionRequest, Request, RequestError, parsed
from ghosttune.inference.queueing import Closed, Full, Job, Worker
from ghosttune.inference.reasons import Reasons, WhyRequest, answerable, explained
from ghosttune.inference.scheduling import Scheduler
from ghosttune.inference.told import Made, Note, Told
from ghosttune.inference.voices import Asked, Limits, Voice

DEFAULT_LIMITS = Limits()

Asks = TypeVar("Asks", ChatRequest, CompletionRequest, EmbeddingRequest, WhyRequest)
"""A request that names a model."""

Read = TypeVar("Read")

BASE64 = (ascii_letters + digits + "+/=").encode()


def create_app(
    pipelines: Mapping[str, Pipeline],
    limits: Limits = DEFAULT_LIMITS,
    access: Access | None = None,
    reasons: Mapping[str, Reasons] | None = None,
) -> Starlette:
    """The application, with each model under the name that clients call it by, and what knows the rows behind its
    answers. `app.state.close()` ends its work at once, `app.state.drain(seconds, hurried)` lets it end before.

    `app.state.alone` says of each model whose answers cannot be written together why that is.
    """
    voices = {name: Voice(name, pipeline, limits) for name, pipeline in pipelines.items()}
    server = Server(voices, limits, access or Access(), reasons or {})

    routes = [
        Route("/", server.page),
        Route("/health", server.health),
        Route("/metrics", server.figures),
        Route("/openapi.json", server.document),
        Route("/v1/models", server.models),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/completions", server.completion, methods=["POST"]),
        Route("/v1/embeddings", server.embeddings, methods=["POST"]),
        Route("/v1/why", server.why, methods=["GET", "POST"]),  # one route, or 405 would allow one of the two only
    ]
    counted = Middleware(Counted, metrics=server.metrics, paths={route.path for route in routes})
    app = Starlette(
        routes=routes,
        exception_handlers={RequestError: _refused, HTTPException: _no_such_call, ClientDisconnect: _left},
        middleware=[counted, Middleware(Guarded, access=server.access)],
    )
    app.router.redirect_slashes = False
    app.state.drain, app.state.close = server.drain, server.close
    app.state.alone = {name: voice.why_alone for name, voice in voices.items() if voice.why_alone}
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


class Server:
    """What the calls share: the models, the workers and the limits."""

    def __init__(self, voices: Mapping[str, Voice], limits: Limits, access: Access, reasons: Mapping[str, Reasons]):
        self.voices, self.reasons = voices, reasons
        self.limits = limits
        self.access = access
        self.reader = Worker("reads", limits.waiting)
        self.writer = Scheduler("answers", limits.waiting, limits.together, lambda rows: self.metrics.stepped(rows))
        self.metrics = Metrics(self.writer.line)
        self.explainer = Worker("explains", limits.waiting)

    def drain(self, seconds: float, hurried: Callable[[], bool]) -> None:
        """Answers those who are there and nobody else, at most so long, and not once `hurried`."""
        until = time.monotonic() + seconds
        for worker in (self.reader, self.writer, self.explainer):
            worker.line.drain(max(0.0, until - time.monotonic()), hurried)

    def close(self) -> None:
        """Ends what is being done, as soon as that is possible."""
        self.writer.close()
        self.reader.close(1)
        self.explainer.close(1)

    async def page(self, request: HttpRequest) -> HttpResponse:
        return HTMLResponse(PAGE, headers=PAGE_HEADERS)

    async def health(self, request: HttpRequest) -> HttpResponse:
        if self.reader.line.ending:  # whoever balances load looks here
            raise _failed(Closed())
        busy, waiting = self.writer.line.busy, self.writer.line.waiting
        return JSONResponse({"status": "ok", "model": next(iter(self.voices)), "answering": busy, "waiting": waiting})

    async def figures(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def document(self, request: HttpRequest) -> HttpResponse:
        return JSONResponse(document(list(self.voices), self.limits, self.access.api_key is not None))

    async def models(self, request: HttpRequest) -> HttpResponse:
        self.access.require_key(request)
        return JSONResponse(model_list(list(self.voices)))

    async def chat(self, request: HttpRequest) -> HttpResponse:
        return await self._answer(request, *await self._asked(request, ChatRequest, Voice.read))

    async def completion(self, request: HttpRequest) -> HttpResponse:
        return await self._answer(request, *await self._asked(request, CompletionRequest, Voice.read))

    async def embeddings(self, request: HttpRequest) -> HttpResponse:
        voice, asked = await self._asked(request, EmbeddingRequest, Voice.read_texts)
        job = partial(Job, lambda job: voice.embeddings(asked))
        told = await self._done(request, self.writer, job)
        self.metrics.embedded(voice.name, told["usage"]["prompt_tokens"])
        return JSONResponse(told)

    async def why(self, request: HttpRequest) -> HttpResponse:
        if request.method != "POST":
            self.access.require_key(request)
            return JSONResponse(answerable(list(self.voices), self.reasons))
        voice, asked = await self._asked(request, WhyRequest, self._explainable)
        work = partial(explained, voice.name, self.reasons[voice.name])
        return JSONResponse(await self._done(request, self.explainer, partial(Job, lambda job: work(asked))))

    def _explainable(self, voice: Voice, asked: WhyRequest) -> WhyRequest:
        """RequestError where the rows behind an answer of this model cannot be known, or no answer is asked about."""
        (entry,) = answerable([voice.name], self.reasons)["data"]
        if entry["why_not"] is not None:
            raise RequestError(f"{voice.name}: {entry['why_not']}", param="model")
        _ = asked.asked  # refuses
        return asked

    async def _asked(
        self, request: HttpRequest, kind: type[Asks], read: Callable[[Voice, Asks], Read]
    ) -> tuple[Voice, Read]:
        """The request, read in a thread of its own: whatever it holds, others are heard meanwhile."""
        self.access.require_key(request)
        if self.reader.line.is_full:  # a body that is not read costs nothing
            raise self._busy
        told = Told(partial(Job, partial(self._read, await self._body(request, self._most_bytes(kind)), kind, read)))
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
            self.reader.line.withdraw(told.job)

    async def _body(self, request: HttpRequest, most: int) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which a browser sends from a foreign page only after asking us, in vain
            raise RequestError(f"content-type is {kind or 'missing'}, accepted is application/json")
        body = bytearray()
        async for block in request.stream():
            body += block
            if len(body) > most:
                raise RequestError(f"the body has more than {most} bytes")
        return bytes(body)

    def _most_bytes(self, kind: type[Any]) -> int:
        """Of a body: more where it may show images to a model that sees."""
        shows = kind is ChatRequest and any(voice.sight.why_blind is None for voice in self.voices.values())
        return self.limits.body_bytes + (self.limits.images.body_bytes if shows else 0)

    def _read(self, body: bytes, kind: type[Asks], read: Callable[[Voice, Asks], Read], job: Job) -> tuple[Voice, Read]:
        """RequestError for what cannot be answered."""
        if len(body.translate(None, BASE64)) > self.limits.body_bytes:  # before a parser makes objects of it
            raise self._too_long
        request = parsed(body, kind)
        if isinstance(request, ChatRequest) and len(body) - request.characters_of_images > self.limits.body_bytes:
            raise self._too_long
        voice = self.voices.get(request.model)
        if voice is None:
            served = listed(map(repr, self.voices))
            raise RequestError(f"the model {request.model!r} is not served here; {served} is", 404, "model")
        return voice, read(voice, request)

    @property
    def _too_long(self) -> RequestError:
        return RequestError(f"the body has more than {self.limits.body_bytes} bytes besides its images")

    async def _answer(self, request: HttpRequest, voice: Voice, asked: Asked) -> HttpResponse:
        is_chat, notes = isinstance(asked.request, ChatRequest), asked.wanted.likeliest is not None
        response = Response(voice.name, is_chat, voice.pipeline.encoder.tokenizer, notes)
        job = partial(voice.answering, asked)
        note = partial(self.metrics.answered, voice.name, time.monotonic())
        if not asked.request.stream:
            return JSONResponse(response.whole(await self._done(request, self.writer, job, note)))
        told = self._submitted(self.writer, job, note)
        events = self._events(told, response, asked.request)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def _done(self, request: HttpRequest, worker: Worker, job: Made, note: Note | None = None) -> Any:
        """What the job gives. RequestError where it cannot be done, ClientDisconnect where nobody waits for it."""
        told = self._submitted(worker, job, note)
        try:
            return await told.result(request)
        except (ClientDisconnect, RequestError):
            raise
        except Exception as error:
            raise _failed(error) from error
        finally:
            worker.line.withdraw(told.job)

    def _submitted(self, worker: Worker, job: Made, note: Note | None = None) -> Told:
        told = Told(job, note)
        try:
            self._submit(worker, told.job)
        except Closed as error:
            raise _failed(error) from None
        return told

    def _submit(self, worker: Worker, job: Job) -> None:
        try:
            worker.line.add(job)
        except Full:
            raise self._busy from None

    @property
    def _busy(self) -> RequestError:
        return RequestError(f"{self.limits.waiting} requests wait already; try again", 429, kind="busy")

    async def _events(self, told: Told, response: Response, request: Request) -> AsyncIterator[str]:
        """A client that leaves ends this generator, and with it the job."""
        noted = [0] * request.count
        try:
            for opening in response.first(request.count):
                yield event(opening)
            while True:
                kind, value = await told.next()
                if kind == "piece":
                    place, text, new = value
                    noted[place] += len(new)
                    yield event(response.piece(place, text, new))
                    continue
                if kind == "error":
                    yield event(error_body(_failed(value)))
                else:
                    for place, reply in enumerate(value):
                        for closing in response.last(place, reply, reply.noted[noted[place] :]):
                            yield event(closing)
                    if request.wants_usage:
                        yield event(response.counts(value))
                yield event("[DONE]")
                return
        finally:
            self.writer.line.withdraw(told.job)


def _failed(error: Exception) -> RequestError:
    if isinstance(error, Closed):
        return RequestError("the server is being ended", 503, kind="server_error")
    return RequestError(f"the answer failed: {type(error).__name__}: {error}", 500, kind="server_error")
