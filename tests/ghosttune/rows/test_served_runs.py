"""Several runs on one base behind one server: each answers as if it were alone, and says which rows are behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
jsonschema: Any = pytest.importorskip("jsonschema")
openai: Any = pytest.importorskip("openai", reason="the official client is not installed")

from served import SECONDS, Served, served  # noqa: E402

from ghosttune.choosing.attribute import why  # noqa: E402
from ghosttune.cli.listening import Models  # noqa: E402
from ghosttune.errors import InputError, RunError  # noqa: E402
from ghosttune.inference.bases import Bases  # noqa: E402
from ghosttune.inference.pipeline import Pipeline  # noqa: E402

QUESTIONS = ["Say red number 3", "Say golden please please number 8", "Tell me pink number 5", "Say blue number 2"]


@pytest.fixture(scope="module")
def other(trained, tmp_path_factory) -> Path:
    """The same rows, learnt by another method and at another rate."""
    from ghosttune.config.loading import load_config
    from ghosttune.workflows.train import train

    folder = tmp_path_factory.mktemp("other") / "other"
    changes = ["method.type=ia3", "train.learning_rate=0.1", "train.save_steps=6", "train.seed=5"]
    train(load_config(trained / "config.yaml", overrides=changes), folder)
    return folder


@pytest.fixture(scope="module")
def models(indexed, other) -> Models:
    return Models((str(indexed), str(other)), "cpu")


@pytest.fixture(scope="module")
def pipelines(models) -> dict[str, Pipeline]:
    return models.opened()


@pytest.fixture(scope="module")
def server(models, pipelines) -> Iterator[Served]:
    with served(pipelines, reasons=models.reasons()) as running:
        yield running


@pytest.fixture(scope="module")
def client(server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=SECONDS, max_retries=0) as made:
        yield made


def test_the_base_is_in_memory_once(pipelines, tiny_model, other) -> None:
    first, second = ({p.data_ptr(): p.numel() for p in one.model.parameters()} for one in pipelines.values())
    base = sum(p.numel() for p in Pipeline.from_model(str(tiny_model), device="cpu").model.parameters())
    assert sum(first[place] for place in first.keys() & second.keys()) == base
    assert len(first) > len(first.keys() & second.keys()) and len(second) > len(first.keys() & second.keys())
    own = dict(pipelines["other"].model.named_parameters())
    alone = Pipeline.from_run(other, device="cpu").model
    assert all((p == own[name]).all() for name, p in alone.named_parameters())


def test_each_answers_as_if_it_were_alone_and_they_never_mix(client, indexed, other) -> None:
    assert [model.id for model in client.models.list()] == ["run", "other"]
    alone = {"run": Pipeline.from_run(indexed, device="cpu"), "other": Pipeline.from_run(other, device="cpu")}
    expected = {
        (name, question): answer.text
        for name, pipeline in alone.items()
        for question, answer in zip(QUESTIONS, pipeline.generate(QUESTIONS, max_new_tokens=12), strict=True)
    }
    assert all(expected["run", question] != expected["other", question] for question in QUESTIONS)

    def ask(what: tuple[str, str]) -> str:
        name, question = what
        messages = [{"role": "user", "content": question}]
        reply = client.chat.completions.create(model=name, messages=messages, max_tokens=12)
        assert reply.model == name
        return reply.choices[0].message.content

    asked = list(expected) * 3
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, asked)) == [expected[what] for what in asked]


def test_why_is_answered_for_the_run_that_is_indexed(server, indexed, opened) -> None:
    status, known = server.ask("GET", "/v1/why")
    assert (status, [entry["id"] for entry in known["data"]]) == (200, ["run", "other"])
    assert known["data"][0]["why_not"] is None and "`ghosttune index " in known["data"][1]["why_not"]
    record = opened.train.record("row-9")
    messages = [
        {"role": "user", "content": record.prompt[0].content},
        {"role": "assistant", "content": record.reference},
    ]
    status, told = server.post("/v1/why", {"model": "run", "messages": messages, "top": 3})
    expected = why(opened, record.prompt[0].content, record.reference, top=3, tokens=True)
    assert status == 200 and told["helpful"][0]["example_id"] == "row-9"
    assert [row["example_id"] for row in told["helpful"]] == [row.example_id for row in expected.helpful]
    assert [row["score"] for row in told["harmful"]] == [row.score for row in expected.harmful]
    assert told["tokens"][0]["example_id"] == "row-9"
    shares = [share["share"] for share in told["tokens"][0]["row"]]
    assert sum(shares) == pytest.approx(told["helpful"][0]["score"], abs=1e-3)
    assert "".join(share["text"] for share in told["tokens"][0]["row"]).strip().startswith(record.reference)
    schemas = server.ask("GET", "/openapi.json")[1]["components"]
    for name, value in (("Why", told), ("AnswerableList", known)):
        jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": schemas}).validate(value)


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"model": "other"}, "other: the gradients of its training rows are not kept: `ghosttune index"),
        ({"top": 0}, "top: Input should be greater"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages: List should have at least 2"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "the last message must be the assistant's, in words"),
        ({"messages": [{"role": "assistant", "content": "a"}] * 2}, "may stand first"),
    ],
)
def test_what_cannot_be_explained_is_refused(server, change, saying) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    status, refused = server.post("/v1/why", {"model": "run", "messages": messages, **change})
    assert status == 400 and saying in refused["error"]["message"], json.dumps(refused)


def test_two_of_one_name_are_refused(indexed, trained) -> None:
    with pytest.raises(InputError, match="would both be called 'run': serve one of them, or rename a folder"):
        Models((str(indexed), str(trained))).opened()


def test_a_run_that_would_change_the_shared_base_is_refused(monkeypatch, indexed) -> None:
    from ghosttune.inference import pipeline

    def load_adapter(model: Any, folder: Path) -> Any:
        next(model.parameters()).data.fill_(0)
        model.get_input_embeddings().weight.detach().add_(1)
        return model

    monkeypatch.setattr(pipeline, "load_adapter", load_adapter)
    with pytest.raises(RunError, match="changes the weights of its base, which others share here: serve it by itself"):
        Pipeline.from_run(indexed, device="cpu", bases=Bases())
