"""Vectors of texts: padding counts for nothing, whatever the pooling."""

from __future__ import annotations

import pytest
import torch

from ghosttune.errors import DataError, InputError
from ghosttune.inference.pipeline import Pipeline

TEXTS = ["Luke has plenty of pillows.", "Boxes", "seven golden boxes, sent to the street on Saturday"]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open("builtin:tiny", "cpu")


def states(pipeline: Pipeline, text: str, layer: int) -> torch.Tensor:
    """The hidden states [T, width] of one text, without padding."""
    template = pipeline.encoder.template
    ids = template.tokenizer(template.opening + text, add_special_tokens=False).input_ids
    with torch.no_grad():
        return pipeline.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]


@pytest.mark.parametrize("layer", [-1, 0, 2])
@pytest.mark.parametrize(
    ("pooling", "pooled"),
    [("mean", lambda rows: rows.mean(0)), ("cls", lambda rows: rows[0]), ("max", lambda rows: rows.amax(0))],
)
def test_a_batch_is_pooled_as_each_text_alone(pipeline, pooling, pooled, layer) -> None:
    expected = torch.stack([pooled(states(pipeline, text, layer)) for text in TEXTS])
    vectors = pipeline.embed(TEXTS, pooling=pooling, layer=layer)
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-4)  # float32 sums in another order


def test_what_cannot_be_embedded_is_refused(pipeline) -> None:
    assert pipeline.embed([]).shape == (0, 160)
    with pytest.raises(InputError, match="pooling is 'sum', accepted are mean, cls, max"):
        pipeline.embed(["a"], pooling="sum")
    with pytest.raises(InputError, match="layer is 9, accepted are -5 to 4"):
        pipeline.embed(["a"], layer=9)
    with pytest.raises(DataError, match=r"text 1 has .* tokens, the model reads 512"):
        pipeline.embed(["a", "word " * 600])
