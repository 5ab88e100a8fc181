"""SST-2: film reviews, positive or negative (Socher et al. 2013; GLUE, arXiv 1804.07461)."""

from __future__ import annotations

from functools import partial

from ghosttune.data.dataset import KnownDataset
from ghosttune.data.fetching import KnownFile
from ghosttune.data.files import read_unquoted
from ghosttune.data.sources import Source
from ghosttune.registry import DATASETS

ARCHIVE = KnownFile(
    "SST-2.zip",
    "https://dl.fbaipublicfiles.com/glue/data/SST-2.zip",
    sha256="d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa",
)


def _file(name: str, rows: int) -> KnownFile:
    read = partial(read_unquoted, columns=("text", "label"))
    return KnownFile(name, ARCHIVE.url, rows, archive=ARCHIVE, member=f"SST-2/{name}", read=read)


SST2 = KnownDataset(
    title="Stanford Sentiment Treebank, two classes (GLUE)",
    source="https://gluebenchmark.com",
    revision="glue-1.0",
    licence="research use, no explicit licence",
    files={"train": _file("train.tsv", 67349), "dev": _file("dev.tsv", 872)},
    columns=("text", "label"),
    other_names=(("sentence", "text"),),
    labels=("negative", "positive"),
    prompt="### Instruction: Classify the sentiment of the sentence.\n\n### Sentence:\n{text}\n\n### Sentiment:\n",
    completion="{label}",
    metrics=("likelihood_accuracy", "accuracy", "unparsed"),
    anchor="RoBERTa base with LoRA: dev accuracy 95.1 (arXiv 2106.09685, table 2)",
)


@DATASETS.register("sst2", SST2)
def sst2(path: str | None) -> Source:
    """Sentences of film reviews, positive or negative."""
    return SST2.open("sst2", path)
