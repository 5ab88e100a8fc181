"""SAMSum: messenger dialogues and their summaries (Gliwa et al. 2019, arXiv 1911.12237)."""

from __future__ import annotations

from ghosttune.data.dataset import KnownDataset, LeftOut, texts
from ghosttune.data.fetching import KnownFile
from ghosttune.data.files import Fields
from ghosttune.data.sources import Source
from ghosttune.registry import DATASETS

ARCHIVE = "https://arxiv.org/src/1911.12237v2/anc/corpus.7z"


def _file(name: str, rows: int) -> KnownFile:
    return KnownFile(name, f"unpack {ARCHIVE}", rows, by_hand=True)


def with_words(fields: Fields) -> Fields:
    """The row with plain line ends; one of the published ones has an empty dialogue."""
    if not texts(fields, "dialogue", "summary")["dialogue"].strip():
        raise LeftOut("the dialogue is empty")
    return fields | {"dialogue": fields["dialogue"].replace("\r\n", "\n")}


SAMSUM = KnownDataset(
    title="SAMSum",
    source="https://arxiv.org/abs/1911.12237",
    revision="1911.12237v2",
    licence="CC BY-NC-ND 4.0 (non-commercial, no derivatives)",
    files={"train": _file("train.json", 14732), "dev": _file("val.json", 818), "test": _file("test.json", 819)},
    columns=("dialogue", "summary"),
    group="dialogue",
    prompt="### Instruction: Summarize the following dialogue.\n\n### Dialogue:\n{dialogue}\n\n### Summary:\n",
    completion="{summary}",
    metrics=("rouge_1", "rouge_2", "rouge_l"),
    anchor="GPT-3 175B with LoRA: ROUGE-1/2/L 53.8/29.8/45.9 (arXiv 2106.09685, table 4)",
    clean=with_words,
)


@DATASETS.register("samsum", SAMSUM)
def samsum(path: str | None) -> Source:
    """Messenger dialogues and their summaries; fetched by hand."""
    return SAMSUM.open("samsum", path)
