"""What is said of a body that no program could read back."""

from __future__ import annotations

import pytest

from ghosttune.inference.protocol import CompletionRequest, RequestError, parsed


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ('"seed": ' + "9" * 5000, "a whole number of more than 4,300 digits"),
        ('"temperature": 1e999', "1e999 is no number"),
        ('"temperature": NaN', "NaN is no number"),
        ('"prompt": "a", "prompt": "b"', '"prompt" stands twice in one object'),
        ('"stop": ' + "[" * 5000 + "]" * 5000, "nested too deeply"),
    ],
)
def test_a_body_that_cannot_be_meant_is_refused_in_our_words(fields, said):
    with pytest.raises(RequestError) as caught:
        parsed(f'{{"model": "m", {fields}}}'.encode(), CompletionRequest)
    assert caught.value.status == 400 and f"the body is not valid JSON: {said}" in str(caught.value)
