"""The real E2E NLG files: counts, groups, prompts, speed, memory and padding."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import encoder_for, shared
from published import source_of

from ghosttune.config.sections.data import SourceSettings
from ghosttune.data.known.e2e import E2E
from ghosttune.data.records import Record
from ghosttune.data.sources import Source, open_source
from ghosttune.errors import DataError
from ghosttune.training.order import RowOrder


def e2e() -> Source:
    return source_of("e2e_nlg")


def of_split(split: str) -> list[Record]:
    return [record for record in e2e().records if record.split == split]


def test_every_row_is_there() -> None:
    assert Counter(record.split for record in e2e().records) == {"train": 42061, "dev": 4672, "test": 4693}
    assert {split: file.rows for split, file in E2E.files.items()} == {"train": 42061, "dev": 4672, "test": 4693}
    assert len({record.example_id for record in e2e().records}) == 42061 + 4672 + 4693
    assert len(e2e().fingerprints) == 3


def test_no_meaning_representation_crosses_a_split() -> None:
    groups = {split: {record.group for record in of_split(split)} for split in E2E.files}
    assert {split: len(found) for split, found in groups.items()} == {"train": 4862, "dev": 547, "test": 630}
    assert not groups["train"] & groups["dev"] and not groups["train"] & groups["test"]
    assert not groups["dev"] & groups["test"]


def test_the_prompt_is_word_for_word_the_reference_projects() -> None:
    record = of_split("train")[0]
    mr = "name[The Vaults], eatType[pub], priceRange[more than £30], customer rating[5 out of 5], near[Café Adriatic]"
    assert record.prompt[0].content == (
        "### Instruction: Generate a natural language description from the following structured data.\n\n"
        f"### Input:\n{mr}\n\n### Output:\n"
    )
    assert record.reference and record.reference.startswith("The Vaults pub near Café Adriatic")
    assert record.metadata == {"mr": mr, "ref": record.reference}
    assert record.place == "trainset.csv.gz:2"


def test_a_row_as_the_model_sees_it() -> None:
    encoder = encoder_for("gpt2", "plain", 512)
    record = of_split("dev")[0]
    features: Any = encoder.encode([record]).features[0]
    decode = encoder.template.tokenizer.decode
    assert decode(features.input_ids.tolist()) == f"{record.prompt[0].content}{record.reference}<|endoftext|>"
    assert decode(features.input_ids[features.trained].tolist()) == f"{record.reference}<|endoftext|>"


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    for file in E2E.files.values():
        shutil.copy(shared("data", "e2e", f"{file.name}.gz"), tmp_path)
    (tmp_path / "devset.csv.gz").unlink()
    (tmp_path / "devset.csv").write_text("MR\nname[A]\n")
    with pytest.raises(DataError, match=r"devset\.csv lacks the columns mr, ref; it has MR"):
        open_source(SourceSettings(name="e2e_nlg", path=str(tmp_path)))
    (tmp_path / "devset.csv").write_text('mr,ref\nname[A],""\nname[B],fine\n')
    with pytest.raises(DataError, match=r"devset\.csv:2: completion is empty"):
        open_source(SourceSettings(name="e2e_nlg", path=str(tmp_path)))


def test_like_lengths_together_pad_little() -> None:
    encoder = encoder_for("gpt2", "plain", 512)
    lengths = [len(row) for row in encoder.encode(of_split("dev")).features]
    random = np.random.default_rng(0).permutation(len(lengths)).tolist()
    bucketed, shuffled = _padding(lengths, list(RowOrder(lengths, 8, 42, grouped=True))), _padding(lengths, random)
    assert bucketed < 0.02 < 0.1 < shuffled


def _padding(lengths: list[int], rows: list[int], batch: int = 8) -> float:
    widths = [max(lengths[row] for row in rows[start : start + batch]) for start in range(0, len(rows), batch)]
    counts = [len(rows[start : start + batch]) for start in range(0, len(rows), batch)]
    return 1 - sum(lengths) / sum(width * count for width, count in zip(widths, counts, strict=True))


MEASURE = """
import json, sys, time
begun = time.process_time()
from making import encoder_for, shared
from ghosttune.config.sections.data import SourceSettings
from ghosttune.data.sources import open_source
from ghosttune.run.recording import peak_memory_mb
imported = time.process_time()
records = open_source(SourceSettings(name="e2e_nlg", path=str(shared("data", "e2e")))).records
read = time.process_time()
encoder = encoder_for(sys.argv[1], sys.argv[2], 512)
made = time.process_time()
encoded = encoder.encode([record for record in records if record.split == "train"])
done = time.process_time()
seconds = {"read": read - imported, "encode": done - made}
peak = peak_memory_mb()["process"]
print(json.dumps({"rows": len(encoded), "tokens": encoded.tokens, "seconds": seconds, "peak_mib": peak}))
"""


@pytest.mark.slow(seconds=9)
@pytest.mark.parametrize(("name", "kind"), [("gpt2", "plain"), ("gpt2-chatml", "chat"), ("stories260K", "plain")])
def test_the_whole_training_set_is_ready_within_20_seconds_and_one_gigabyte(
    name: str, kind: str, torch_seconds: float
) -> None:
    """Processor seconds of one thread where torch is imported in 1.2, in proportion elsewhere; the peak of a fresh
    process."""
    shared("data", "e2e"), encoder_for(name, kind)
    one_thread = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    path = {"PYTHONPATH": ":".join([str(Path(__file__).parent), *sys.path]), "GHOSTTUNE_SHARED": str(shared())}
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, name, kind],
        env=one_thread | path,
        capture_output=True,
        text=True,
        check=True,
        timeout=1500,
    )
    measured = json.loads(ran.stdout)
    assert measured["rows"] == 42061
    assert sum(measured["seconds"].values()) < 20 * max(1.0, torch_seconds / 1.2), measured
    assert measured["peak_mib"] < 1000, measured
