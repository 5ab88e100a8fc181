"""MultiNLI: does a sentence follow from another? (Williams et al. 2018, arXiv 1704.05426)."""

from __future__ import annotations

from functools import partial

from ghosttune.data.dataset import KnownDataset, LeftOut
from ghosttune.data.fetching import KnownFile
from ghosttune.data.files import Fields, read_unquoted
from ghosttune.data.sources import Source
from ghosttune.registry import DATASETS

ARCHIVE = KnownFile(
    "multinli_1.0.zip",
    "https://cims.nyu.edu/~sbowman/multinli/multinli_1.0.zip",
    sha256="049f507b9e36b1fcb756cfd5aeb3b7a0cfcb84bf023793652987f7e7e0957822",
)
NO_LABEL = ("-", -1, "-1")


def _file(part: str, rows: int) -> KnownFile:
    name = f"multinli_1.0_{part}.jsonl"
    read = partial(read_unquoted, columns=("label", "premise", "hypothesis"))
    return KnownFile(name, ARCHIVE.url, rows, archive=ARCHIVE, member=f"multinli_1.0/{name}", read=read)


def with_label(fields: Fields) -> Fields:
    """The row; those on which the annotators did not agree carry `-`."""
    if fields["label"] in NO_LABEL:
        raise LeftOut("label -: the annotators did not agree")
    return fields


MULTI_NLI = KnownDataset(
    title="MultiNLI 1.0",
    source="https://cims.nyu.edu/~sbowman/multinli",
    revision="1.0",
    licence="OANC licence; parts CC BY 3.0 and CC BY-SA 3.0",
    files={
        "train": _file("train", 392702),
        "dev": _file("dev_matched", 10000),
        "dev_mismatched": _file("dev_mismatched", 10000),
    },
    columns=("premise", "hypothesis", "label"),
    kept=("genre",),
    other_names=(("sentence1", "premise"), ("sentence2", "hypothesis"), ("gold_label", "label")),
    labels=("entailment", "neutral", "contradiction"),
    group="premise",
    prompt=(
        "### Instruction: Classify the relationship.\n\n"
        "### Premise:\n{premise}\n\n### Hypothesis:\n{hypothesis}\n\n### Classification:\n"
    ),
    completion="{label}",
    metrics=("likelihood_accuracy", "accuracy", "unparsed"),
    anchor="GPT-3 175B with LoRA: dev matched accuracy 91.7; RoBERTa base with LoRA: 87.5 (arXiv 2106.09685)",
    clean=with_label,
)


@DATASETS.register("multi_nli", MULTI_NLI)
def multi_nli(path: str | None) -> Source:
    """Whether a sentence follows from another, contradicts it, or neither."""
    return MULTI_NLI.open("multi_nli", path)
