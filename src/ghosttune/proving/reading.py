"""Proof 8 for tasks that read an answer off the model: what it is shown is what it was trained on, and no answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ghosttune.data.records import Record, Turn
from ghosttune.models.loading import load_model
from ghosttune.proving.specimens import short_run, write_model
from ghosttune.stages.prepare import prepare

Row = dict[str, Any]


def _texts(n: int) -> Row:
    return {"text": f"The film {n} was {'really ' * (n % 4)}{'lovely' if n % 2 else 'dull'}"}


def _asked(n: int) -> Row:
    town = ("Paris", "London", "Rome")[n % 3]
    context = f"Number {n}, " + "the river was cold. " * (n % 4) + f"Anna lives in {town}."
    return {
        "question": "Where does Anna live?",
        "context": context,
        "answers": {"text": [town], "answer_start": [context.index(town)]},
    }


ROWS: dict[str, Callable[[int], Row]] = {
    "sequence_classification": lambda n: _texts(n) | {"label": "good" if n % 2 else "bad"},
    "regression": lambda n: _texts(n) | {"label": 0.5 * (n % 5)},
    "token_classification": lambda n: {"tokens": ["Anna", "lives", f"{n}"], "tags": ["PERSON", "O", "O"]},
    "question_answering": _asked,
    "seq2seq_lm": lambda n: {"prompt": f"Say number {n} {'please ' * (n % 3)}", "completion": f"number {n}"},
}
"""Task -> its n-th row."""


def shown_is_trained(task: str, folder: Path) -> bool:
    """Whether the tokens of every row are the same in training and when it is predicted with another answer."""
    folder.mkdir(parents=True)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(ROWS[task](n)) + "\n" for n in range(24)))
    encoders_and_decoders = task == "seq2seq_lm"
    model = _write_t5(folder / "model") if encoders_and_decoders else write_model(folder / "model")
    targets = ["q", "v"] if encoders_and_decoders else "all_linear"
    own = {"task__type": task, "method__target_modules": targets, "model__init": "random", "data__max_length": 200}
    prepared = prepare(short_run(model, rows, **own))
    records = sorted(prepared.train_records, key=lambda record: record.example_id)
    kind = prepared.task.kind(prepared.encoder.tokenizer)
    with seen_by(load_model(prepared.config.model, 0, kind)) as (reader, seen):
        prepared.task.predict(reader, prepared.encoder, [_answered(a, b) for a, b in _pairs(records)])
    trained = prepared.encoder.collator()(prepared.encoder.encode(records).features)
    return bool(seen) and sorted(seen) == sorted(_tokens(trained["input_ids"], trained["attention_mask"]))


def _pairs(records: list[Record]) -> list[tuple[Record, Record]]:
    return list(zip(records, [*records[1:], records[0]], strict=True))


def _answered(record: Record, other: Record) -> Record:
    """The record with the answer of another one, as far as one can stand in its place."""
    if record.turns:
        return replace(record, turns=(*record.turns[:-1], Turn("assistant", other.turns[-1].content)))
    changes = {name: other.columns[name] for name in ("label", "tags") if name in record.columns}
    return replace(record, columns={**record.columns, **changes})


@contextmanager
def seen_by(model: Any) -> Any:
    """(the model, the token ids of each row that its encoder is given while inside)."""
    seen: list[list[int]] = []
    part = model.get_encoder() if model.config.is_encoder_decoder else model

    def note(module: Any, given: Any, named: dict[str, Any]) -> None:
        seen.extend(_tokens(named["input_ids"], named["attention_mask"]))

    handle = part.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield model, seen
    finally:
        handle.remove()


def _tokens(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]


def _write_t5(folder: Path) -> Path:
    """A model folder of a small encoder and decoder, with the built-in tokenizer."""
    from transformers import T5Config, T5ForConditionalGeneration

    from ghosttune.models.builtin import builtin_model_folder
    from ghosttune.proving.tokenizers import from_folder

    tokenizer = from_folder(builtin_model_folder("builtin:tiny"))
    torch.manual_seed(0)
    shape: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    shape |= {"pad_token_id": pad, "eos_token_id": end, "decoder_start_token_id": pad}
    config = T5Config(vocab_size=len(tokenizer), **shape)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
