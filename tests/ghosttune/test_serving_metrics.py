"""`/metrics`, read by Prometheus' own parser, says what was asked and answered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
parser: Any = pytest.importorskip("prometheus_client.parser", reason="the extra `serve` is not installed")
openai: Any = pytest.importorskip("openai", reason="the official client is not installed")

from served import SECONDS, Served, served, until  # noqa: E402

from ghosttune.inference.pipeline import Pipeline  # noqa: E402

SECRET = "zqSecret"


def figures(server: Served) -> dict[tuple[str, ...], float]:
    """(name, values of its labels by their names) -> value."""
    status, text = server.ask("GET", "/metrics")
    assert status == 200 and SECRET not in text
    samples = [sample for family in parser.text_string_to_metric_families(text) for sample in family.samples]
    return {
        (one.name.removeprefix("ghosttune_"), *(v for _, v in sorted(one.labels.items()))): one.value for one in samples
    }


def test_the_figures_are_those_of_what_was_asked() -> None:
    with served(Pipeline.open("builtin:tiny", "cpu")) as server:
        assert figures(server)["num_requests_running",] == 0
        url = f"{server.url}/v1"
        with openai.OpenAI(base_url=url, api_key="none", timeout=SECONDS, max_retries=0) as client:
            asked = {"model": "tiny", "prompt": f"One day {SECRET}", "max_tokens": 6}
            with ThreadPoolExecutor(4) as pool:
                replies = list(pool.map(lambda place: client.completions.create(**asked, n=2, seed=place), range(4)))
            *_, last = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
            replies.append(last)
            read = client.embeddings.create(model="tiny", input=[SECRET, "b"]).usage.prompt_tokens
        server.post("/v1/completions", {**asked, "temperature": SECRET})
        server.ask("GET", f"/{SECRET}")
        until(lambda: figures(server).get(("requests_total", "other", "404")) == 1)
        found = figures(server)
    assert found["requests_total", "/v1/completions", "200"] == len(replies) == 5
    assert found["requests_total", "/v1/completions", "400"] == found["requests_total", "/v1/embeddings", "200"] == 1
    assert found["e2e_request_latency_seconds_count", "/v1/completions"] == 6
    prompts = sum(reply.usage.prompt_tokens for reply in replies)
    assert found["prompt_tokens_total", "tiny"] == prompts + read
    written = sum(reply.usage.completion_tokens for reply in replies)
    assert found["generation_tokens_total", "tiny"] == written
    assert found["time_to_first_token_seconds_count", "tiny"] == 5
    first, whole = (
        found["time_to_first_token_seconds_sum", "tiny"],
        found["e2e_request_latency_seconds_sum", "/v1/completions"],
    )
    assert 0 < first <= whole
    begun = 2 * 4 + 1  # the first token of an answer is written when its prompt is read
    assert found["batch_size_sum",] == written - begun
    assert found["batch_size_bucket", "8.0"] == found["batch_size_count",]
    assert found["num_requests_running",] == found["num_requests_waiting",] == 0


def test_running_and_waiting_are_counted_while_they_do(monkeypatch) -> None:
    from ghosttune.inference.streaming import Writing
    from ghosttune.inference.voices import Limits

    add, go_on = Writing.add, []

    def slow(self: Any, token: int) -> bool:
        until(lambda: bool(go_on))
        return add(self, token)

    monkeypatch.setattr(Writing, "add", slow)
    with served(Pipeline.open("builtin:tiny", "cpu"), Limits(together=1)) as server, ThreadPoolExecutor(2) as pool:
        asked = {"model": "tiny", "prompt": "a", "max_tokens": 2}
        told = [pool.submit(server.post, "/v1/completions", asked) for _ in range(2)]
        until(lambda: (found := figures(server))["num_requests_running",] == found["num_requests_waiting",] == 1)
        go_on.append(True)
        assert [one.result()[0] for one in told] == [200, 200]
