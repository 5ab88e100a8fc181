"""E2E NLG: restaurant descriptions from attribute lists (Novikova et al. 2017, arXiv 1706.09254)."""

from __future__ import annotations

from ghosttune.data.dataset import KnownDataset
from ghosttune.data.fetching import KnownFile
from ghosttune.data.sources import Source
from ghosttune.registry import DATASETS

REVISION = "ab0d967dd5729ce455ef14ba9ffafc456a335264"
SITE = f"https://raw.githubusercontent.com/tuetschek/e2e-dataset/{REVISION}"

E2E = KnownDataset(
    title="E2E NLG challenge",
    source="https://github.com/tuetschek/e2e-dataset",
    revision=REVISION,
    licence="CC BY-SA 4.0",
    files={
        "train": KnownFile("trainset.csv", f"{SITE}/trainset.csv", rows=42061),
        "dev": KnownFile(
            "devset.csv",
            f"{SITE}/devset.csv",
            rows=4672,
            sha256="9b90c8f88feae14d9e1ef37350b14d17294c5958e90a3f1a7846590ee97bdbb9",
        ),
        "test": KnownFile(
            "testset_w_refs.csv",
            f"{SITE}/testset_w_refs.csv",
            rows=4693,
            sha256="edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd",
        ),
    },
    columns=("mr", "ref"),
    group="mr",
    prompt=(
        "### Instruction: Generate a natural language description from the following structured data.\n\n"
        "### Input:\n{mr}\n\n### Output:\n"
    ),
    completion="{ref}",
    metrics=("bleu_lowercase", "bleu", "rouge_l", "meteor", "chrf"),
    anchor="GPT-2 M with LoRA: BLEU 70.4 (arXiv 2106.09685, table 3)",
)


@DATASETS.register("e2e_nlg", E2E)
def e2e_nlg(path: str | None) -> Source:
    """Restaurant descriptions from attribute lists; several references per list."""
    return E2E.open("e2e_nlg", path)
