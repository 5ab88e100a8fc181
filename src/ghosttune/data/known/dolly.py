"""Dolly 15k: instructions written and answered by Databricks' employees (2023)."""

from __future__ import annotations

from ghosttune.data.columns import request
from ghosttune.data.dataset import KnownDataset, texts
from ghosttune.data.fetching import KnownFile
from ghosttune.data.files import Fields
from ghosttune.data.sources import Source
from ghosttune.registry import DATASETS

REVISION = "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a"
SITE = f"https://huggingface.co/datasets/databricks/databricks-dolly-15k/resolve/{REVISION}"


def with_request(fields: Fields) -> Fields:
    """The row with its request as one text."""
    texts(fields, "instruction", "context")
    return fields | {"request": request(fields["instruction"], fields["context"])}


DOLLY = KnownDataset(
    title="databricks-dolly-15k",
    source="https://huggingface.co/datasets/databricks/databricks-dolly-15k",
    revision=REVISION,
    licence="CC BY-SA 3.0",
    files={
        "train": KnownFile(
            "databricks-dolly-15k.jsonl",
            f"{SITE}/databricks-dolly-15k.jsonl",
            rows=15011,
            sha256="2df9083338b4abd6bceb5635764dab5d833b393b55759dffb0959b6fcbf794ec",
        )
    },
    columns=("instruction", "context", "response"),
    kept=("category",),
    prompt="{request}",
    wording={"request": "the instruction, and below it the context where there is one"},
    completion="{response}",
    metrics=("rouge_l", "chrf"),
    anchor="none: its publishers held no rows out",
    clean=with_request,
)


@DATASETS.register("dolly", DOLLY)
def dolly(path: str | None) -> Source:
    """Instructions of eight kinds, written and answered by people."""
    return DOLLY.open("dolly", path)
