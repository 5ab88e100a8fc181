"""A corpus in blocks: every token once, ids that give the tokens back, domains, GPT-2 token files, manifests."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from making import CORPUS, encoder_for, shared, tokenizer_called
from published import write

from ghosttune.config.sections.data import SourceSettings
from ghosttune.data.blocks import Document, in_blocks
from ghosttune.data.encoding import Collator
from ghosttune.data.records import Records
from ghosttune.data.sources import open_source
from ghosttune.errors import DataError, ModelError

LENGTH = 16
STORY = " ".join(CORPUS) * 3


def blocks(path: Path, tokenizer: str = "small", length: int = LENGTH) -> Records:
    source = open_source(SourceSettings(name="text", path=str(path)))
    assert source.in_blocks is not None and source.row_format == "text"
    return source.in_blocks(tokenizer_called(tokenizer), length)


def fault(path: Path, kind: type[Exception] = DataError, tokenizer: str = "small") -> str:
    with pytest.raises(kind) as caught:
        blocks(path, tokenizer)
    return str(caught.value)


def tokens_of(records: Records, name: str) -> list[int]:
    """The tokens of all blocks whose id begins with this name, joined."""
    return [token for record in records if record.example_id.startswith(f"{name}-") for token in record.tokens.tolist()]


def corpus(folder: Path) -> Path:
    (folder / "novel.txt").write_text(STORY)
    write(folder / "letters.jsonl", [{"text": STORY[:90]}, {"text": STORY[90:200], "domain": "post"}])
    return folder


@pytest.mark.parametrize("tokenizer", ["small", "small-gemma", "builtin", "first-word"])
def test_every_token_stands_in_one_block(tmp_path: Path, tokenizer: str) -> None:
    named = tokenizer_called(tokenizer)
    records = blocks(corpus(tmp_path), tokenizer)
    texts = {"novel": STORY, "letters-000000": STORY[:90], "letters-000001": STORY[90:200]}
    for name, text in texts.items():
        whole = named(text).input_ids
        expected = whole if whole[-1] == named.eos_token_id else [*whole, named.eos_token_id]
        found = tokens_of(records, name)
        assert found == expected[: len(found)] and len(expected) - len(found) in (0, 1)
        assert len(found) == len(expected) or len(expected) % LENGTH == 1, "only a lone last token has no block"
    assert all(1 < len(record.tokens) <= LENGTH for record in records)
    assert len({record.example_id for record in records}) == len(records)


def test_an_id_gives_the_exact_tokens_back(tmp_path: Path) -> None:
    """And what a batch holds is those tokens, all trained but the first."""
    tokenizer = tokenizer_called("small")
    records = blocks(corpus(tmp_path))
    whole = [*tokenizer(STORY).input_ids, tokenizer.eos_token_id]
    encoded = encoder_for("small", "plain", LENGTH, loss_on="all").encode(records)
    batch = Collator(0)(encoded.features)
    for record, ids, labels, mask in zip(
        records, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
    ):
        name, _, start = record.example_id.rpartition("-")
        row = ids[mask.bool()].tolist()
        if name == "novel":
            assert row == whole[int(start) : int(start) + LENGTH]
        assert labels.tolist() == [-100, *row[1:], *[-100] * (len(ids) - len(row))]
    assert encoded.targets == sum(len(record.tokens) - 1 for record in records)


def test_domains_splits_and_groups(tmp_path: Path) -> None:
    corpus(tmp_path)
    (tmp_path / "novel_dev.txt").write_text(STORY)
    (tmp_path / "test.txt").write_text(STORY)
    records = blocks(tmp_path)
    found = {(record.metadata["domain"], record.split) for record in records}
    assert found == {("novel", None), ("novel", "dev"), ("letters", None), ("post", None), (tmp_path.name, "test")}
    by_name = Counter(record.group for record in records)
    letters = {name: count for name, count in by_name.items() if name.startswith("letters")}
    assert set(letters) == {"letters-000000", "letters-000001"}, "a document stays on one side"
    assert all(by_name[record.group] == 1 for record in records if record.example_id.startswith("novel"))


def test_blocks_of_equal_length_are_the_lengths_asked_for() -> None:
    document = Document("d", "d", None, np.arange(10, dtype="<u2"), is_whole=False)
    gpt2 = tokenizer_called("gpt2")
    for length, expected in [(3, [3, 3, 3]), (4, [4, 4, 2]), (5, [5, 5]), (9, [9]), (10, [10]), (99, [10])]:
        records = in_blocks([document], gpt2, length)
        assert [len(record.tokens) for record in records] == expected
        assert [record.example_id for record in records] == [f"d-{n * length:09d}" for n in range(len(expected))]


def test_token_files_of_gpt2_are_mapped_as_they_are(tmp_path: Path) -> None:
    gpt2 = tokenizer_called("gpt2")
    ids = [token for text in CORPUS for token in [*gpt2(text).input_ids, gpt2.eos_token_id]]
    np.array(ids, "<u2").tofile(tmp_path / "arxiv_train.bin")
    np.array(ids[::-1], "<u2").tofile(tmp_path / "github_val.bin")
    records = blocks(tmp_path, "gpt2")
    assert tokens_of(records, "arxiv_train") == ids and tokens_of(records, "github_val") == ids[::-1]
    assert {(record.metadata["domain"], record.split) for record in records} == {("arxiv", "train"), ("github", "dev")}
    assert all(isinstance(record.tokens.base, np.memmap | np.ndarray) for record in records)
    assert gpt2.decode(tokens_of(records, "arxiv_train")) == "".join(f"{text}<|endoftext|>" for text in CORPUS)
    assert "holds tokens of GPT-2, and the model has another tokenizer" in fault(tmp_path, ModelError, "builtin")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds 0 bytes"),
        (b"abc", "holds 3 bytes; a .bin file holds GPT-2 tokens of two bytes each"),
        (np.array([5, 50257], "<u2").tobytes(), "holds the token 50257; GPT-2 has 50257, numbered from 0"),
    ],
)
def test_other_bin_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    assert said in fault(tmp_path, tokenizer="gpt2")


def test_a_manifest_says_which_files_must_be_there(tmp_path: Path) -> None:
    corpus(tmp_path)
    names = {"novel.txt": sha256((tmp_path / "novel.txt").read_bytes()).hexdigest(), "pile.bin": None, "web.txt": None}
    (tmp_path / "manifest.json").write_text(json.dumps(names))
    message = fault(tmp_path)
    assert "lacks pile.bin, web.txt; manifest.json names novel.txt, pile.bin, web.txt" in message
    (tmp_path / "manifest.json").write_text(json.dumps({"novel.txt": names["novel.txt"]}))
    assert {record.metadata["domain"] for record in blocks(tmp_path)} == {"novel"}
    (tmp_path / "novel.txt").write_text("changed")
    assert "novel.txt differ from the sha256 in manifest.json" in fault(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    assert "must hold {file name: sha256 or null}" in fault(tmp_path)


def test_a_folder_that_is_no_corpus_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in fault(tmp_path / "none")
    assert "holds no files; readable are .bin (GPT-2 tokens as uint16), .jsonl" in fault(tmp_path)
    (tmp_path / "a.txt").write_text(" \n")
    assert "a.txt is empty" in fault(tmp_path)
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "README.md").write_text("about")
    assert "README.md is not readable; a corpus holds .bin" in fault(tmp_path)
    (tmp_path / "README.md").unlink()
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"words"))
    assert "holds several files called a;" in fault(tmp_path)
    write(tmp_path / "rows.jsonl", [{"text": "fine"}, {"text": ""}, {"words": "x"}])
    assert "2 of 3 rows have no text in a column text: rows.jsonl:2, rows.jsonl:3" in fault(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"needs data\.train\.path"):
        open_source(SourceSettings(name="text"))


def test_a_corpus_is_prepared_as_training_sees_it(tmp_path: Path) -> None:
    """Real texts, in the order and the shapes of a run."""
    from ghosttune.config.loading import load_config
    from ghosttune.stages.prepare import prepare

    text = gzip.decompress(shared("data", "lm", "wizard_of_oz.txt.gz").read_bytes()).decode()[:20_000]
    (tmp_path / "oz.txt").write_text(text)
    speeches = gzip.decompress(shared("data", "lm", "inaugural.jsonl.gz").read_bytes()).splitlines()[:5]
    (tmp_path / "speeches.jsonl").write_bytes(b"\n".join(speeches))
    (tmp_path / "wiki_test.txt").write_text(text[:2000])
    chosen = [f"data.train.path={tmp_path}", "data.train.name=text", "data.max_length=128", "data.loss_on=all"]
    prepared = prepare(load_config(overrides=chosen))
    domains = Counter(record.metadata["domain"] for record in prepared.train_records)
    assert set(domains) == {"oz", "speeches"}
    assert list(prepared.left_out) == ["split test is not used for training"]
    assert not {record.group for record in prepared.train_records} & {record.group for record in prepared.dev_records}
    assert max(len(row) for row in prepared.train.features) == 128
    decode = prepared.encoder.template.tokenizer.decode
    first = next(record for record in prepared.train_records if record.example_id.startswith("oz-"))
    words = decode(first.tokens.tolist())
    assert words.strip("�") in text.replace("\r\n", "\n")
