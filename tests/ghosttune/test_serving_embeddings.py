"""`/v1/embeddings`, as OpenAI's own client meets it, beside a forward of Transformers written out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
openai: Any = pytest.importorskip("openai", reason="the official client is not installed")
jsonschema: Any = pytest.importorskip("jsonschema")

import torch  # noqa: E402
from served import SECONDS, Served, served  # noqa: E402

from ghosttune.inference.pipeline import Pipeline  # noqa: E402
from ghosttune.inference.voices import Limits  # noqa: E402

TEXTS = ["Luke has plenty of pillows.", "Boxes", "seven golden boxes, sent to the street on Saturday"]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open("builtin:tiny", "cpu")


@pytest.fixture(scope="module")
def server(pipeline) -> Iterator[Served]:
    with served(pipeline, Limits(embedded_tokens=1500)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=SECONDS, max_retries=0) as made:
        yield made


def ids_of(pipeline: Pipeline, text: str) -> list[int]:
    tokenizer = pipeline.encoder.tokenizer
    return tokenizer(pipeline.encoder.template.opening + text, add_special_tokens=False).input_ids


def expected(pipeline: Pipeline, text: str) -> list[float]:
    """By the bare decoder: the mean of its last states, divided by its length."""
    with torch.no_grad():
        states = pipeline.model.model(input_ids=torch.tensor([ids_of(pipeline, text)])).last_hidden_state[0]
    mean = states.double().sum(0) / len(states)
    return (mean / mean.square().sum().sqrt()).tolist()


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_vectors_are_those_of_a_forward_written_out(client, pipeline, encoding) -> None:
    asked = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model="tiny", input=TEXTS, **asked)
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(ids_of(pipeline, t)) for t in TEXTS)
    for entry, text in zip(answer.data, TEXTS, strict=True):
        vector = entry.embedding
        if encoding == "base64":  # asked for by name, the client hands on what it was sent
            import base64

            vector = torch.frombuffer(bytearray(base64.b64decode(vector)), dtype=torch.float32).tolist()
        assert vector == pytest.approx(expected(pipeline, text), abs=1e-5)


def test_texts_their_tokens_and_lists_of_either_are_one(client, pipeline) -> None:
    ids = [ids_of(pipeline, text) for text in TEXTS]
    together = [entry.embedding for entry in client.embeddings.create(model="tiny", input=ids).data]
    for text, tokens, vector in zip(TEXTS, ids, together, strict=True):
        for asked in (text, tokens, [text]):
            (alone,) = client.embeddings.create(model="tiny", input=asked).data
            assert alone.embedding == pytest.approx(vector, abs=1e-5)


def test_it_is_described(server) -> None:
    schemas = server.ask("GET", "/openapi.json")[1]["components"]
    for encoding in ("float", "base64"):
        asked = {"model": "tiny", "input": TEXTS, "encoding_format": encoding}
        for name, value in (("EmbeddingRequest", asked), ("EmbeddingList", server.post("/v1/embeddings", asked)[1])):
            whole = {"$ref": f"#/components/schemas/{name}", "components": schemas}
            jsonschema.Draft202012Validator(whole).validate(value)


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"dimensions": 8}, "dimensions: Input should be None"),
        ({"encoding_format": "int8"}, "encoding_format: Input should be 'float' or 'base64'"),
        ({"input": ""}, "at least 1 character"),
        ({"input": []}, "at least 1 item"),
        ({"input": [[]]}, "at least 1 item"),
        ({"input": ["a", 1]}, "input.*should be a valid"),
        ({"input": ["a", ""]}, "at least 1 character"),
        ({"input": [0, 99999]}, "text 0 has tokens that the model has not; it has 0 to 1535"),
        ({"input": [-1]}, "greater than or equal to 0"),
        ({"input": [True]}, "input.*should be a valid"),
        ({"input": ["a", "word " * 600]}, "text 1 has .* tokens, the model reads 512"),
        ({"input": ["word " * 200] * 8}, "the texts have .* tokens together, at most 1500; send fewer"),
        ({"model": "gpt-4"}, "the model 'gpt-4' is not served here"),
        ({"input": [0] * 70_000}, "the body has more than 65536 values"),
    ],
)
def test_what_cannot_be_embedded_is_refused(client, change, saying) -> None:
    with pytest.raises(openai.APIStatusError, match=saying) as refused:
        client.embeddings.create(**{"model": "tiny", "input": "a", **change})
    assert refused.value.status_code in (400, 404)


@pytest.mark.filterwarnings("ignore")  # PEFT's of Transformers
def test_a_learned_prompt_is_no_part_of_the_text(pipeline) -> None:
    import peft

    from ghosttune.inference.embedding import embed

    settings = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    prompted = peft.get_peft_model(Pipeline.open("builtin:tiny", "cpu").model, settings).eval()
    together = embed(prompted, pipeline.encoder.template, TEXTS, "mean", -1)
    alone = torch.cat([embed(prompted, pipeline.encoder.template, [text], "mean", -1) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    inputs = prompted.get_base_model().get_input_embeddings()(torch.tensor([ids_of(pipeline, TEXTS[0])]))
    with torch.no_grad():
        whole = torch.cat([prompted.get_prompt(1), inputs], dim=1)
        states = prompted.get_base_model().model(inputs_embeds=whole).last_hidden_state[0, 3:]
    torch.testing.assert_close(together[0], states.mean(0), rtol=1e-4, atol=1e-4)
