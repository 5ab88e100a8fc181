"""What a server has done, for Prometheus; names follow vLLM's. Nothing of what is asked or answered is in it."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ghosttune.inference.queueing import Line
from ghosttune.inference.streaming import Reply

__all__ = ["CONTENT_TYPE_LATEST", "Counted", "Metrics"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
ANSWERS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Figures of one server; `line` is where its answers wait."""

    def __init__(self, line: Line):
        self._registry = known = CollectorRegistry()
        self._requests = Counter("ghosttune_requests", "Requests.", ["path", "status"], registry=known)
        self._latency = Histogram(
            "ghosttune_e2e_request_latency_seconds", "From a request's head to the end of its answer.",
            ["path"], registry=known, buckets=SECONDS,
        )  # fmt: skip
        self._first = Histogram(
            "ghosttune_time_to_first_token_seconds", "From a request that is read to its answer's first token.",
            ["model_name"], registry=known, buckets=SECONDS,
        )  # fmt: skip
        self._read = Counter("ghosttune_prompt_tokens", "Tokens of prompts.", ["model_name"], registry=known)
        self._written = Counter("ghosttune_generation_tokens", "Tokens of answers.", ["model_name"], registry=known)
        self._together = Histogram(
            "ghosttune_batch_size", "Answers that got a token in one step.", registry=known, buckets=ANSWERS
        )
        running = Gauge("ghosttune_num_requests_running", "Requests that are being answered.", registry=known)
        waiting = Gauge("ghosttune_num_requests_waiting", "Requests that wait to be answered.", registry=known)
        running.set_function(lambda: len(line.current))
        waiting.set_function(lambda: line.waiting)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)

    def stepped(self, answers: int) -> None:
        """So many answers got a token."""
        self._together.observe(answers)

    def embedded(self, model: str, tokens: int) -> None:
        """So many tokens were read."""
        self._read.labels(model).inc(tokens)

    def answered(self, model: str, since: float, replies: Sequence[Reply]) -> None:
        """The answers to a request that was read at this time (`time.monotonic`)."""
        self._read.labels(model).inc(replies[0].prompt_tokens)
        self._written.labels(model).inc(sum(reply.tokens for reply in replies))
        began = [reply.began for reply in replies if reply.began is not None]
        if began:
            self._first.labels(model).observe(min(began) - since)

    def served(self, path: str, status: int, seconds: float) -> None:
        """A request has been answered, or its client has left."""
        self._requests.labels(path, str(status)).inc()
        self._latency.labels(path).observe(seconds)


class Counted:
    """An application whose requests are counted; unknown paths, which are anybody's text, are one."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]):
        self.app, self.metrics, self.paths = app, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sent)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.served(path, status, time.monotonic() - began)
