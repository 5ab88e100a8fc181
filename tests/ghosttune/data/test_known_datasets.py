"""Every known dataset: its rows are those of the files, its prompts are one, and what is said about it is complete."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from making import REPOSITORY, encoder_for, shared
from published import folder_of, source_of, write

from ghosttune.config.sections.data import SourceSettings
from ghosttune.data.dataset import KnownDataset
from ghosttune.data.files import read_file
from ghosttune.data.records import Record
from ghosttune.data.sources import Source, open_source
from ghosttune.errors import DataError
from ghosttune.registry import DATASETS
from ghosttune.workflows.show import show

OWN = ("text", "image_text")
"""Layouts of files that are the user's own: test_blocks.py, test_image_rows.py."""

NAMES = [name for name in DATASETS.names() if name not in OWN]


def described(name: str) -> KnownDataset:
    return DATASETS[name].settings


def opened(name: str, path: Path) -> Source:
    return open_source(SourceSettings(name=name, path=str(path)))


def some(name: str, count: int = 12) -> list[Record]:
    """Rows from all over the dataset."""
    records = source_of(name).records
    return records[:: max(1, len(records) // count)]


def by_split(name: str) -> dict[str | None, int]:
    return dict(Counter(record.split for record in source_of(name).records))


COUNTS = {
    "e2e_nlg": ({"train": 42061, "dev": 4672, "test": 4693}, 0),
    "samsum": ({"train": 14731 - 42 - 51, "dev": 818 - 4, "test": 819}, 42 + 51 + 4),
    "sst2": ({"train": 6920, "dev": 872}, 0),
    "squad": ({None: 10570}, 0),
    "alpaca": ({None: 4998}, 2),
    "wikisql": ({"train": 7000, "dev": 1000, "test": 1000}, 0),
    "imdb": ({"train": 2, "test": 2}, 0),
    "cola": ({"train": 2, "dev": 1}, 0),
    "multi_nli": ({"train": 4, "dev": 1, "dev_mismatched": 1}, 3),
    "dolly": ({"train": 2}, 0),
}
"""Dataset -> (rows per split, rows left out): together, the rows of the files."""


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_read_or_counted(name: str) -> None:
    source = source_of(name)
    counts, dropped = COUNTS[name]
    assert by_split(name) == counts
    assert sum(source.dropped.values()) == dropped
    assert len({record.example_id for record in source.records}) == len(source.records)


@pytest.mark.parametrize("name", NAMES)
def test_no_group_crosses_a_split(name: str) -> None:
    groups: dict[str | None, set[str]] = {}
    for record in source_of(name).records:
        groups.setdefault(record.split, set()).add(record.group)
    judged = [(left, right) for left in ("train", "dev") for right in ("dev", "test") if left != right]
    assert not any(groups.get(left, set()) & groups.get(right, set()) for left, right in judged)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("tokenizer", "kind"), [("builtin", "plain"), ("gpt2", "turns"), ("gpt2-chatml", "chat")])
def test_training_evaluation_and_chat_ask_the_same(
    name: str, tokenizer: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt of a training row, of that row at evaluation, and of its words typed into a chat, token by token."""
    from ghosttune.inference import pipeline

    asked: list[list[int]] = []
    monkeypatch.setattr(pipeline, "generate", lambda model, tokenizer, prompts, *settings: asked.extend(prompts))
    monkeypatch.setattr(pipeline, "longest_input", lambda model: None)
    encoder = encoder_for(tokenizer, kind, 100_000)
    rows = some(name)
    pipeline.Pipeline(object(), encoder, 8).generate([row.prompt[-1].content for row in rows])
    for row, features, in_chat in zip(rows, encoder.encode(rows).features, asked, strict=True):
        trained = features.input_ids[~features.trained].tolist()
        assert trained == encoder.prompt_ids(row) == in_chat
        answer = encoder.template.tokenizer.decode(features.input_ids[features.trained].tolist())
        assert answer.strip() == f"{(row.reference or '').strip()}{encoder.template.stop_token}"


@pytest.mark.parametrize("name", NAMES)
def test_a_row_holds_its_wording_and_its_columns(name: str) -> None:
    """Rendered independently: the wording's fields, replaced one by one."""
    known = described(name)
    for record in some(name):
        assert set(known.columns) <= record.metadata.keys() <= {*known.columns, *known.kept}
        fields = known.clean(record.metadata)
        said = [known.prompt, known.completion]
        for field in re.findall(r"{(\w+)}", known.prompt + known.completion):
            said = [part.replace(f"{{{field}}}", str(fields[field]), 1) for part in said]
        assert [record.prompt[0].content, record.reference] == said
        if known.labels:
            assert record.metadata["label"] in known.labels and record.reference == record.metadata["label"]


@pytest.mark.parametrize("name", DATASETS.names())
def test_what_is_said_about_it_is_complete(name: str) -> None:
    text, facts = show("datasets", name)
    for fact in (
        "title",
        "source",
        "revision",
        "licence",
        "columns",
        "group",
        "completion",
        "stop",
        "metrics",
        "anchor",
    ):
        assert facts[fact], fact
        assert re.search(rf"^{fact} +\S", text, re.MULTILINE), fact
    if name not in OWN:
        for split, file in described(name).files.items():
            assert f"  {split}: {file.name}, {file.rows:,} rows, http" in text.replace(
                "rows, unpack http", "rows, http"
            )
            assert file.sha256 or file.archive or file.by_hand or (name, split) == ("e2e_nlg", "train")


def test_the_table_in_the_documents_is_that_of_the_registry() -> None:
    page = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    section = page.partition("## Known datasets")[2].partition("\n## ")[0]
    rows = [row.split(" | ") for row in re.findall(r"^\| (`\w+` \| .*) \|$", section, re.MULTILINE)]
    listed = {row[0].strip("`"): row[1:] for row in rows}
    expected = {}
    for name in DATASETS.names():
        known = described(name)
        counts = ", ".join(f"{split} {file.rows:,}" for split, file in known.files.items()) or "as found"
        expected[name] = [counts, known.group or "prompt", known.licence, known.anchor]
    assert listed == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_lists_all_that_are_expected(name: str, tmp_path: Path) -> None:
    known = described(name)
    with pytest.raises(DataError) as caught:
        opened(name, tmp_path)
    assert all(file.name in str(caught.value) for file in known.files.values())


@pytest.mark.parametrize("part", ["matched", "mismatched"])
def test_real_pairs_of_multi_nli(part: str) -> None:
    file = shared("data", "nli", f"mnli_{part}_1k.tsv.gz")
    source = opened("multi_nli", file)
    assert len(source.records) == 1000 and not source.dropped
    counts = {"matched": (373, 311, 316), "mismatched": (346, 319, 335)}[part]
    found = Counter(record.metadata["label"] for record in source.records)
    assert tuple(found[label] for label in described("multi_nli").labels) == counts


def test_labels_that_nobody_agreed_on_are_dropped_and_counted() -> None:
    assert source_of("multi_nli").dropped == {"label -: the annotators did not agree": 3}


def test_the_labelled_test_file_of_sst2_alone() -> None:
    source = opened("sst2", shared("data", "sst2", "test.tsv.gz"))
    assert Counter(record.metadata["label"] for record in source.records) == {"negative": 912, "positive": 909}
    assert source.splits == (), "one file brings no splits: dev rows are drawn from it"


def test_glue_writes_a_header(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text('sentence\tlabel\na "fine film\t1\n')
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nbad\t0\n")
    records = opened("sst2", tmp_path).records
    assert [record.metadata for record in records] == [
        {"text": 'a "fine film', "label": "positive"},
        {"text": "bad", "label": "negative"},
    ]


def test_squad_answers_stand_where_they_say(tmp_path: Path) -> None:
    for record in some("squad", 500):
        fields = record.metadata
        for text, start in zip(fields["answers"]["text"], fields["answers"]["answer_start"], strict=True):
            assert fields["context"][start : start + len(text)] == text
    assert len({record.group for record in source_of("squad").records}) == 48
    row = {"id": "1", "title": "t", "context": "Ann ran.", "question": "Who?"}
    write(tmp_path / "dev-v1.1.jsonl", [row | {"answers": {"text": ["Bob"], "answer_start": [0]}}])
    with pytest.raises(DataError, match=r"dev-v1\.1\.jsonl:1: the answer 'Bob' does not stand at character 0"):
        opened("squad", tmp_path / "dev-v1.1.jsonl")
    (tmp_path / "dev-v1.1.json").write_text('{"data": [{"paragraphs": []}]}')
    assert "holds no rows" in fault("squad", tmp_path / "dev-v1.1.json")
    (tmp_path / "dev-v1.1.json").write_text("[]")
    assert "not in the layout of SQuAD 1.1" in fault("squad", tmp_path / "dev-v1.1.json")


def fault(name: str, path: Path) -> str:
    with pytest.raises(DataError) as caught:
        opened(name, path)
    return str(caught.value)


def test_rows_that_cannot_be_used_are_listed_together(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("fine\t1\nodd\t2\nodder\tyes\nshort\n")
    (tmp_path / "dev.tsv").write_text("bad\t0\n")
    assert "train.tsv:4: 1 cells, not 2 (text, label)" in fault("sst2", tmp_path)
    (tmp_path / "train.tsv").write_text("fine\t1\nodd\t2\nodder\tyes\n")
    message = fault("sst2", tmp_path)
    assert "2 of 3 rows cannot be used" in message
    assert "train.tsv:2: label must be one of negative, positive or its number from 0, is '2'" in message
    write(tmp_path / "rows.jsonl", [{"text": "a", "label": True}])
    assert "is true" in fault("sst2", tmp_path / "rows.jsonl")
    write(tmp_path / "rows.jsonl", [{"sentence": "a"}])
    assert "lacks the columns label; it has sentence" in fault("sst2", tmp_path / "rows.jsonl")
    write(tmp_path / "rows.jsonl", [{"instruction": "a", "input": None, "output": "b"}])
    assert "rows.jsonl:1: input must be text, is null" in fault("alpaca", tmp_path / "rows.jsonl")
    write(tmp_path / "rows.jsonl", [{"dialogue": " ", "summary": "b"}, {"dialogue": "A: a\r\nB: b", "summary": "c"}])
    source = opened("samsum", tmp_path / "rows.jsonl")
    assert source.dropped == {"the dialogue is empty": 1} and source.records[0].metadata["dialogue"] == "A: a\nB: b"


def test_the_tables_of_wikisql_are_those_of_its_questions() -> None:
    from ghosttune.data.known.wikisql import tables

    found = tables(str(folder_of("wikisql")))
    assert len(found) == 2392 + 322 + 342
    assert len(source_of("wikisql").fingerprints) == 6, "a changed table is a changed prompt"
    for record in some("wikisql", 200):
        table = found[record.metadata["table_id"]]
        assert (table.header, table.types) == (record.metadata["header"], record.metadata["types"])
        assert all(len(row) == len(table.header) for row in table.rows)


def test_a_file_of_dev_rows_is_read_as_the_dataset_is() -> None:
    from ghosttune.config.loading import load_config
    from ghosttune.stages.prepare import prepare

    files = {split: shared("data", "sst2", f"{split}.tsv.gz") for split in ("train", "test")}
    chosen = [f"data.train.path={files['train']}", f"data.dev.path={files['test']}", "data.train.name=sst2"]
    prepared = prepare(load_config(overrides=[*chosen, "data.train.limit=100", "data.dev.limit=20"]))
    assert len(prepared.dev_records) == 20 and len(prepared.fingerprints) == 2
    assert all(record.metadata["label"] == record.reference for record in prepared.dev_records)


def test_wikisql_without_its_tables_is_refused(tmp_path: Path) -> None:
    questions = shared("data", "wikisql", "dev.jsonl.gz")
    assert "lacks dev.tables.jsonl, the tables of dev.jsonl.gz" in fault("wikisql", questions)
    (tmp_path / "dev.jsonl.gz").symlink_to(questions)
    (tmp_path / "dev.tables.jsonl.gz").symlink_to(shared("data", "wikisql", "exec_dev.tables.jsonl.gz"))
    assert re.search(
        r"\d+ tables are not in dev\.tables\.jsonl\.gz, \S+ among them", fault("wikisql", tmp_path / "dev.jsonl.gz")
    )
    first = read_file(shared("data", "wikisql", "exec_dev.tables.jsonl.gz"))[0][1]
    write(tmp_path / "one.tables.jsonl", [first])
    write(
        tmp_path / "one.jsonl", [{"question": "q", "table_id": first["id"], "sql": {"sel": 99, "agg": 0, "conds": []}}]
    )
    assert "one.jsonl:1: sql is no logical form over 5 columns" in fault("wikisql", tmp_path / "one.jsonl")
