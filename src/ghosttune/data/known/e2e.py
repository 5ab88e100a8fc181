"""E2E NLG: restaurant descriptions from attribute lists (Novikova et al. 2017, arXiv 1706.09254)."""

from __future__ import annotations

from ghosttune.data.fetching import KnownDataset, KnownFile
from ghosttune.data.files import Fields, fingerprint, read_file
from ghosttune.data.records import Record, records_of
from ghosttune.data.sources import Source, example_ids
from ghosttune.registry import DATASETS

REVISION = "ab0d967dd5729ce455ef14ba9ffafc456a335264"
SITE = f"https://raw.githubusercontent.com/tuetschek/e2e-dataset/{REVISION}"

E2E = KnownDataset(
    title="E2E NLG challenge",
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
    anchor="GPT-2 M with LoRA: BLEU 70.4 (arXiv 2106.09685, table 3)",
    metrics=("bleu_lowercase", "bleu", "rouge_l", "meteor", "chrf"),
)

PROMPT = (
    "### Instruction: Generate a natural language description from the following structured data.\n\n"
    "### Input:\n{mr}\n\n### Output:\n"
)


@DATASETS.register("e2e_nlg", E2E)
def e2e_nlg(path: str | None) -> Source:
    """Restaurant descriptions from attribute lists; several references per list."""
    records: list[Record] = []
    fingerprints: dict[str, str] = {}
    for split, file in E2E.locate("e2e_nlg", path).items():
        rows = read_file(file)
        E2E.require_columns(file, rows)
        fingerprints[str(file)] = fingerprint(file)
        asked = [(place, _asked(row, split)) for place, row in rows]
        records += records_of(asked, "prompt_completion", example_ids(rows, "e2e_nlg", split), E2E.group)
    return Source(records, "prompt_completion", fingerprints)


def _asked(row: Fields, split: str) -> Fields:
    return {"prompt": PROMPT.format(mr=row["mr"]), "completion": row["ref"], "mr": row["mr"], "split": split}
