"""For every check of the doctor: a case that it finds, and the nearest one that it lets through."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ghosttune.config.advising import Planned
from ghosttune.config.loading import load_config, with_values
from ghosttune.config.schema import section_class
from ghosttune.config.sections.model import ModelSettings
from ghosttune.data.encoding import Collator, Encoder, Features
from ghosttune.data.inspecting import Inspected
from ghosttune.data.records import Record, Records, Turn
from ghosttune.data.templates import Template
from ghosttune.models.loading import load_tokenizer

COLOURS = ["red", "green", "blue", "golden", "silver", "pink", "white"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's template as somebody copies it to a tokenizer that does not know its marks."""


def usable(count: int = 70) -> list[dict[str, Any]]:
    """Different prompts with short answers."""
    return [
        {"prompt": f"Say {COLOURS[n % 7]} and number {n}.", "completion": f"{COLOURS[n % 7]} {n}"} for n in range(count)
    ]


def record(prompt: str, completion: str, example_id: str = "") -> Record:
    turns = (Turn("user", prompt), Turn("assistant", completion))
    return Record(example_id or f"{prompt} {completion}", turns, prompt)


RECORDS = [record(row["prompt"], row["completion"]) for row in usable(8)]
OTHERS = [record(row["prompt"], row["completion"]) for row in usable(10)[8:]]


@functools.cache
def tokenizer(chat_template: str | None = None) -> Any:
    """The built-in one, with another chat template where one is given; its padding is its end-of-text token."""
    made = load_tokenizer(ModelSettings())
    made.pad_token = made.eos_token
    if chat_template:
        made.chat_template = chat_template
    return made


def inspected(train: list[Record] | None = None, chat_template: str | None = None, **changes: Any) -> Inspected:
    """Rows as a run sees them; `changes` replace what it looks at."""
    train = RECORDS if train is None else train
    template = Template("chat", tokenizer(chat_template))
    encoder = Encoder(template, 128, "completion")
    seen = {
        "train": Records.of(train),
        "dev": OTHERS,
        "test": Records.of([]),
        "features": encoder.encode(train).features,
        "collate": encoder.collator(),
        "tokenizer": encoder.tokenizer,
        "template": template,
        "max_new_tokens": 16,
        "published": False,
    }
    return Inspected(**(seen | changes))


def untrained(case: Inspected, from_end: int) -> list[Features]:
    """The features of a case with the first row's last trained tokens taken away; 0 for all of them."""
    features: list[Any] = list(case.features)
    trained = features[0].trained.copy()
    trained[trained.nonzero()[0][-from_end:]] = False
    features[0] = Features(0, features[0].example_id, features[0].input_ids, trained)
    return features


def masks_pad_tokens(rows: Any) -> dict[str, Any]:
    """How language-model collators mask padding: every pad token, the trained stop token among them."""
    batch = Collator(tokenizer().pad_token_id)(rows)
    return batch | {"labels": batch["labels"].masked_fill(batch["input_ids"] == tokenizer().pad_token_id, -100)}


def twice_bos() -> Inspected:
    """The first row begins as if a template and a tokenizer had both opened it."""
    import numpy as np

    case = inspected()
    features: list[Any] = list(case.features)
    bos = [tokenizer().bos_token_id] * 2
    ids = np.array([*bos, *features[0].input_ids], np.int32)
    features[0] = Features(0, features[0].example_id, ids, np.array([False] * 2 + features[0].trained.tolist()))
    return inspected(features=features)


def shows(is_image: bool) -> Inspected:
    """One dev row shows a file, which may be no image."""
    from PIL.Image import new

    path = Path(tempfile.mkdtemp()) / "shown.png"
    new("RGB", (2, 2)).save(path)
    if not is_image:
        path.write_text("no image")
    asked, *others = OTHERS[0].turns
    shown = replace(asked, content=f"<image>{asked.content}", images=(str(path),))
    return inspected(dev=[replace(OTHERS[0], turns=(shown, *others))])


ROW_CASES: dict[str, tuple[Callable[[], Inspected], Callable[[], Inspected], str]] = {
    "images that cannot be opened": (
        lambda: shows(False),
        lambda: shows(True),
        "1 of 1 images cannot be opened, which 1 rows show: ",
    ),
    "no supervised labels": (
        lambda: inspected(features=untrained(inspected(), 0)),
        lambda: inspected(features=untrained(inspected(), 1)),
        "1 of 8 rows (12.5%) have no trained token: Say red and number 0. red 0",
    ),
    "stop token not trained": (
        lambda: inspected(features=untrained(inspected(), 1)),
        inspected,
        "1 of 8 rows do not train ",
    ),
    "labels lost in the batch": (
        lambda: inspected(collate=masks_pad_tokens),
        inspected,  # padding is the end-of-text token here too
        "masked: ",
    ),
    "double bos": (twice_bos, inspected, "1 of 8 rows begin with "),
    "template of another family": (
        lambda: inspected(chat_template=CHATML),
        inspected,
        "writes <|im_start|>, which are no tokens of this tokenizer",
    ),
    "rows rendered already": (
        lambda: inspected([*RECORDS, record("<|im_start|>user\nSay red.<|im_end|>", "red")]),
        lambda: inspected([*RECORDS, record("Say |red| with <b> and [1].", "red")]),
        "1 of 9 rows hold <|im_start|>, a mark of ChatML (Qwen)",
    ),
    "duplicate rows": (
        lambda: inspected([*RECORDS, record("Say red and number 0.", "red 0", "again")]),
        lambda: inspected([*RECORDS, record("Say red and number 0.", "another answer")]),
        "1 of 9 training rows (11.1%) repeat another row's prompt and answer: again",
    ),
    "test rows trained": (
        lambda: inspected(test=Records.of([record("Say green and number 1.", "something else")])),
        lambda: inspected(test=Records.of([record("Say green and number 100.", "green 1")])),
        "1 of 8 training rows ask the same as a test row: Say green and number 1. green 1",
    ),
    "evaluation rows trained": (
        lambda: inspected(dev=[*OTHERS, record("say  RED and number 0.", "red 0", "shouted")]),
        lambda: inspected(dev=[*OTHERS, record("Say red and number 00.", "red 0")]),
        "1 of 3 dev rows were trained on (1 prompt and answer): shouted as Say red and number 0. red 0",
    ),
    "answers longer than evaluation allows": (
        lambda: inspected(dev=[*OTHERS, record("Say much.", "much " * 20, "long")]),
        lambda: inspected(dev=[*OTHERS, record("Say much.", "much " * 20)], max_new_tokens=None),
        "1 of 3 dev answers are longer than evaluate.max_new_tokens 16: long",
    ),
}
"""Check -> (found, let through, what the message holds)."""


def planned(width: int = 1024, rows: int = 200, dev: int = 20, **settings: Any) -> Planned:
    """A run of 200 steps of 8 rows in a model of ordinary width; settings by path, `__` for the dot."""
    usual = {"train.max_steps": 200, "train.eval_steps": 20, "train.save_steps": 20}
    config = load_config({"data": {"train": {"path": "builtin:rows"}}})
    changes = {path.replace("__", "."): value for path, value in settings.items()}
    return Planned(with_values(config, usual | changes), rows, dev, 6, width)


FULL = section_class("method", "full")()

SETTING_CASES: dict[str, list[tuple[Callable[[], Planned], Callable[[], Planned], str]]] = {
    "learning rate out of range": [
        (
            lambda: planned(train__learning_rate=5e-3),
            lambda: planned(train__learning_rate=5e-3, width=160),
            "lora usually learns with 1e-05 to 0.001 in a model of width 1024",
        ),
        (lambda: planned(train__learning_rate=1e-6), lambda: planned(train__learning_rate=1e-5), "is 1e-06"),
        (
            lambda: planned(method=FULL, train__learning_rate=5e-4),
            lambda: planned(method=FULL, train__learning_rate=5e-4, model__init="random"),
            "full usually learns with 1e-07 to 0.0003",
        ),
    ],
    "warmup most of the run": [
        (lambda: planned(train__warmup_steps=101), lambda: planned(train__warmup_steps=100), "101 of the run's 200"),
    ],
    "too many passes": [
        (
            lambda: planned(rows=8, train__max_steps=201),
            lambda: planned(rows=9, train__max_steps=201),
            "reads the 8 training rows 201 times",
        ),
    ],
    "batch larger than the data": [
        (lambda: planned(rows=7), lambda: planned(rows=8), "a step takes 8 rows"),
        (
            lambda: planned(rows=31, data__online_selection__by="loss"),
            lambda: planned(rows=32, data__online_selection__by="loss"),
            "gradient_accumulation_steps x data.online_selection.candidates), and 31 train",
        ),
    ],
    "too few dev rows": [
        (lambda: planned(dev=5), lambda: planned(dev=6), "5 dev rows choose the best checkpoint"),
    ],
    "evaluated at the end only": [
        (lambda: planned(train__eval_steps=101), lambda: planned(train__eval_steps=100), "101 of the run's 200"),
    ],
    "saved at the end only": [
        (lambda: planned(train__save_steps=101), lambda: planned(train__save_steps=100), "101 of the run's 200"),
    ],
}
