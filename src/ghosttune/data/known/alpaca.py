"""Alpaca: 52,002 instructions answered by text-davinci-003 (Taori et al. 2023)."""

from __future__ import annotations

from ghosttune.data.columns import request
from ghosttune.data.dataset import KnownDataset, LeftOut, texts
from ghosttune.data.fetching import KnownFile
from ghosttune.data.files import Fields
from ghosttune.data.sources import Source
from ghosttune.registry import DATASETS

REVISION = "761dc5bfbdeeffa89b8bff5d038781a4055f796a"
SITE = f"https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/{REVISION}"


def with_answer(fields: Fields) -> Fields:
    """The row with its request as one text; a few of the published ones have no answer."""
    if not texts(fields, "instruction", "input", "output")["output"].strip():
        raise LeftOut("the output is empty")
    return fields | {"request": request(fields["instruction"], fields["input"])}


ALPACA = KnownDataset(
    title="Stanford Alpaca",
    source="https://github.com/tatsu-lab/stanford_alpaca",
    revision=REVISION,
    licence="CC BY-NC 4.0 (non-commercial)",
    files={
        "train": KnownFile(
            "alpaca_data.json",
            f"{SITE}/alpaca_data.json",
            rows=52002,
            sha256="2eddafc6b977608d778aaab8dfc7e50e547b3af9826dfb9e909d9fc362e4a419",
        )
    },
    columns=("instruction", "input", "output"),
    prompt="{request}",
    completion="{output}",
    metrics=("rouge_l", "chrf"),
    wording={"request": "the instruction, and below it the input where there is one"},
    anchor="none: its publishers held no rows out",
    clean=with_answer,
)


@DATASETS.register("alpaca", ALPACA)
def alpaca(path: str | None) -> Source:
    """Instructions of all kinds with a model's answers."""
    return ALPACA.open("alpaca", path)
