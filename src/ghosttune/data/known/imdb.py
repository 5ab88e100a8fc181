"""IMDb: whole film reviews, positive or negative (Maas et al. 2011, ACL P11-1015)."""

from __future__ import annotations

from ghosttune.data.dataset import KnownDataset
from ghosttune.data.fetching import KnownFile
from ghosttune.data.sources import Source
from ghosttune.registry import DATASETS

REVISION = "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"
SITE = f"https://huggingface.co/datasets/stanfordnlp/imdb/resolve/{REVISION}/plain_text"


def _file(split: str, sha256: str) -> KnownFile:
    return KnownFile(f"{split}.parquet", f"{SITE}/{split}-00000-of-00001.parquet", 25000, sha256)


IMDB = KnownDataset(
    title="Large Movie Review Dataset",
    source="https://ai.stanford.edu/~amaas/data/sentiment",
    revision=REVISION,
    licence="reviews of IMDb users, no explicit licence",
    files={
        "train": _file("train", "db47d16b5c297cc0dd625e519c81319c24c9149e70e8496de5475f6fa928342c"),
        "test": _file("test", "b52e26e2f872d282ffac460bf9770b25ac6f102cda0e6ca7158df98c94e8b3da"),
    },
    columns=("text", "label"),
    labels=("negative", "positive"),
    prompt="### Instruction: Classify the sentiment of the review.\n\n### Review:\n{text}\n\n### Sentiment:\n",
    completion="{label}",
    metrics=("likelihood_accuracy", "accuracy", "unparsed"),
    anchor="ULMFiT: test accuracy 95.4 (arXiv 1801.06146, table 2)",
)


@DATASETS.register("imdb", IMDB)
def imdb(path: str | None) -> Source:
    """Whole film reviews, positive or negative."""
    return IMDB.open("imdb", path)
