"""Every known dataset in the layout of its publishers: real files where the shared folder has them, else made rows."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from making import shared

from ghosttune.config.sections.data import SourceSettings
from ghosttune.data.sources import Source, open_source

REAL = {
    "e2e_nlg": ("e2e", {}),
    "samsum": ("samsum", {}),
    "sst2": ("sst2", {}),
    "squad": ("squad/dev-v1.1.json.gz", {}),
    "alpaca": ("instruct/alpaca_5000.json.gz", {}),
    "wikisql": (
        "wikisql",
        {
            f"{split}{kind}.jsonl.gz": f"exec_{split}{kind}.jsonl.gz"
            for split in ("train", "dev", "test")
            for kind in ("", ".tables")
        },
    ),
}
"""Dataset -> (where its real files lie, published name of a file -> the name it has there)."""


def pair(premise: str, hypothesis: str, label: str) -> dict[str, str]:
    return {"sentence1": premise, "sentence2": hypothesis, "gold_label": label, "genre": "fiction", "pairID": "1n"}


def review(text: str, label: int) -> dict[str, Any]:
    return {"text": f"{text}<br /><br />Really.", "label": label}


MADE: dict[str, dict[str, str | list[dict[str, Any]]]] = {
    "imdb": {
        "train.parquet": [review("A bad film", 0), review("A fine film", 1)],
        "test.parquet": [review("A dull film", 0), review("A grand film", 1)],
    },
    "cola": {
        "train.tsv": 'gj04\t1\t\tThe "horse fell.\ngj04\t0\t*\tHorse the fell.\n',
        "dev.tsv": "bc01\t1\t\tThey drank the pub dry.\n",
    },
    "multi_nli": {
        "multinli_1.0_train.jsonl": [
            pair("It rains .", "The street gets wet .", "entailment"),
            pair("It rains .", "The sun shines .", "contradiction"),
            pair("It rains .", "It is Monday .", "neutral"),
            pair("It rains .", "Nobody knows .", "-"),
            pair('A "dog" barks .', "An animal is heard .", "entailment"),
        ],
        "multinli_1.0_dev_matched.jsonl": [pair("Go .", "Leave .", "entailment"), pair("Go .", "Stay .", "-")],
        "multinli_1.0_dev_mismatched.jsonl": [pair("No .", "Yes .", "contradiction"), pair("No .", "Perhaps .", "-")],
    },
    "dolly": {
        "databricks-dolly-15k.jsonl": [
            {"instruction": "Name a colour.", "context": "", "response": "Red", "category": "brainstorming"},
            {"instruction": "Who ran?", "context": "Ann ran.", "response": "Ann", "category": "closed_qa"},
        ]
    },
}
"""Dataset that the shared folder lacks -> file -> a few rows as they are published."""


@functools.cache
def folder_of(dataset: str) -> Path:
    """The dataset's folder or file."""
    folder = Path(tempfile.mkdtemp(prefix="published-"))
    if dataset in REAL:
        place, names = REAL[dataset]
        real = shared("data", *place.split("/"))
        for published, name in names.items():
            (folder / published).symlink_to(real / name)
        return folder if names else real
    for name, rows in MADE[dataset].items():
        write(folder / name, rows)
    return folder


@functools.cache
def source_of(dataset: str) -> Source:
    return open_source(SourceSettings(name=dataset, path=str(folder_of(dataset))))


def write(path: Path, rows: str | list[dict[str, Any]]) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    if isinstance(rows, str):
        path.write_text(rows)
    elif path.suffix == ".parquet":
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
