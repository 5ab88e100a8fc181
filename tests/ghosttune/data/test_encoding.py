"""Features and batches: labels survive, padding is known by position, ids go along."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making import encoder_for, question, record

from ghosttune.data.encoding import IGNORED, Collator, Features
from ghosttune.errors import DataError

ROWS = [
    question("What is the capital of France?", " Paris", "a"),
    question("Who?", " Lily is a little girl named Lily.", "b"),
    question("A much longer question about the quick brown fox:", " It jumps.", "c"),
]


@pytest.mark.parametrize("pad", ["eos", "first", "own"])
def test_labels_are_the_trained_ids_and_nothing_else(pad: str) -> None:
    encoder = encoder_for("small", "plain")
    tokenizer = encoder.template.tokenizer
    token = {"eos": tokenizer.eos_token_id, "own": tokenizer.pad_token_id}.get(pad)
    features = encoder.encode(ROWS).features
    batch = Collator(int(features[1].input_ids[0]) if token is None else token)(features)
    width = max(len(row) for row in features)
    for place, row in enumerate(features):
        length = len(row)
        assert batch["input_ids"][place, :length].tolist() == row.input_ids.tolist()
        assert batch["attention_mask"][place].tolist() == [1] * length + [0] * (width - length)
        expected = np.where(row.trained, row.input_ids, IGNORED).tolist()
        assert batch["labels"][place].tolist() == expected + [IGNORED] * (width - length)
        assert batch["labels"][place, length - 1] == tokenizer.eos_token_id, "the stop token keeps its label"
        answer = encoder._token_ids([ROWS[place].turns[1].content])[0]
        assert row.targets == len(answer) + 1
    assert batch["example_index"].tolist() == [0, 1, 2]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_the_example_index_finds_the_row_in_any_batch() -> None:
    encoded = encoder_for("small", "plain").encode(ROWS)
    batch = Collator(0)([encoded.features[2], encoded.features[0]])
    assert [encoded.features[index].example_id for index in batch["example_index"].tolist()] == ["c", "a"]


def test_loss_on_all_trains_everything_but_the_first_token() -> None:
    features = encoder_for("small", "turns", loss_on="all").encode(ROWS).features
    assert all(row.trained.tolist() == [False] + [True] * (len(row) - 1) for row in features)
    completion = encoder_for("small", "turns").encode(ROWS).features
    assert [row.input_ids.tolist() for row in features] == [row.input_ids.tolist() for row in completion]


def test_plain_text_rows_need_loss_on_all_and_are_listed() -> None:
    rows = [record(("text", "plain"), example_id="t1"), ROWS[0], record(("text", "words"), example_id="t2")]
    with pytest.raises(DataError, match=r"2 of 3 rows are plain text .*t1, t2\. Set data\.loss_on: all"):
        encoder_for("small", "plain").encode(rows)
    assert len(encoder_for("small", "plain", loss_on="all").encode(rows)) == 3


def test_counts_add_up() -> None:
    encoded = encoder_for("small", "plain").encode(ROWS)
    assert encoded.tokens == sum(len(row.input_ids) for row in encoded.features)
    assert encoded.targets == sum(int(row.trained.sum()) for row in encoded.features)
    assert (encoded.cut_rows, encoded.cut_tokens) == ([], 0)


def test_rows_are_encoded_alike_alone_and_among_thousands() -> None:
    encoder = encoder_for("first-word", "turns")
    rows = [question(f"question {number % 7}", f"answer {number}", str(number)) for number in range(5000)]
    together = encoder.encode(rows).features
    for number in (0, 6, 2047, 2048, 4999):
        alone = encoder.encode([rows[number]]).features[0]
        assert (together[number].index, together[number].example_id) == (number, str(number))
        assert together[number].input_ids.tolist() == alone.input_ids.tolist()
        assert together[number].trained.tolist() == alone.trained.tolist()


def test_features_own_their_memory() -> None:
    """Rows that share a prompt or an answer must not share arrays."""
    first, second = encoder_for("small", "plain").encode([ROWS[0], ROWS[0]]).features
    first.input_ids[:] = 0
    assert second.input_ids.any()
    assert first.input_ids.dtype == np.int32 and first.trained.dtype == bool


def test_a_collator_of_one_row_adds_nothing() -> None:
    row = Features(4, "x", np.array([5, 6, 7], np.int32), np.array([False, True, True]))
    batch = Collator(9)([row])
    assert batch["input_ids"].tolist() == [[5, 6, 7]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7]]
    assert batch["attention_mask"].all() and batch["example_index"].tolist() == [4]
