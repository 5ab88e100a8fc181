"""CoLA: sentences that are acceptable English or not (Warstadt et al. 2019, arXiv 1805.12471; GLUE)."""

from __future__ import annotations

from functools import partial

from ghosttune.data.dataset import KnownDataset
from ghosttune.data.fetching import KnownFile
from ghosttune.data.files import read_unquoted
from ghosttune.data.sources import Source
from ghosttune.registry import DATASETS

ARCHIVE = KnownFile(
    "CoLA.zip",
    "https://dl.fbaipublicfiles.com/glue/data/CoLA.zip",
    sha256="f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff",
)


def _file(name: str, rows: int) -> KnownFile:
    read = partial(read_unquoted, columns=("origin", "label", "authors_mark", "text"))
    return KnownFile(name, ARCHIVE.url, rows, archive=ARCHIVE, member=f"CoLA/{name}", read=read)


COLA = KnownDataset(
    title="Corpus of Linguistic Acceptability (GLUE)",
    source="https://nyu-mll.github.io/CoLA",
    revision="glue-1.0",
    licence="examples from the linguistics literature, no explicit licence",
    files={"train": _file("train.tsv", 8551), "dev": _file("dev.tsv", 1043)},
    columns=("text", "label"),
    kept=("origin",),
    other_names=(("sentence", "text"),),
    labels=("unacceptable", "acceptable"),
    prompt="### Instruction: Judge if the sentence is acceptable English.\n\n### Sentence:\n{text}\n\n### Judgement:\n",
    completion="{label}",
    metrics=("likelihood_accuracy", "likelihood_macro_f1", "auc"),
    anchor="RoBERTa base with LoRA: dev Matthews correlation 63.4 (arXiv 2106.09685, table 2)",
)


@DATASETS.register("cola", COLA)
def cola(path: str | None) -> Source:
    """Sentences from the linguistics literature, acceptable or not."""
    return COLA.open("cola", path)
