"""SQuAD 1.1: questions whose answers stand in a paragraph of Wikipedia (Rajpurkar et al. 2016, arXiv 1606.05250)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ghosttune.data.dataset import KnownDataset, texts
from ghosttune.data.fetching import KnownFile
from ghosttune.data.files import Fields, Placed, kind_of, read_document, read_file, shown
from ghosttune.data.records import RowFault
from ghosttune.data.sources import Source
from ghosttune.data.stored import Stored
from ghosttune.errors import DataError
from ghosttune.registry import DATASETS

SITE = "https://rajpurkar.github.io/SQuAD-explorer/dataset"


def read_articles(path: Path) -> Sequence[Placed]:
    """One row per question, placed by its id; other kinds of file hold such rows already."""
    if kind_of(path) != "json":
        return read_file(path)
    document = read_document(path)
    try:
        rows = Stored(_questions(document, path.name))
    except (TypeError, KeyError) as error:
        raise DataError(f"{path} is not in the layout of SQuAD 1.1 (data, paragraphs, qas): {error!r}") from error
    if not rows:
        raise DataError(f"{path} holds no rows")
    return rows


def _questions(document: Any, name: str) -> Iterator[Placed]:
    for article in document["data"]:
        for paragraph in article["paragraphs"]:
            shared = {"title": article["title"], "context": paragraph["context"]}
            for asked in paragraph["qas"]:
                row = {"id": asked["id"], "question": asked["question"], "answers": asked["answers"]}
                yield f"{name}:{asked['id']}", row | shared


def with_answers(fields: Fields) -> Fields:
    """The row with `answers` as {text: […], answer_start: […]} and the first text as `answer`.

    RowFault when an answer does not stand in the context where it says.
    """
    context, answers = texts(fields, "title", "context", "question")["context"], fields["answers"]
    if isinstance(answers, list):  # the published files; parquet copies hold the other form already
        answers = {part: [answer[part] for answer in answers] for part in ("text", "answer_start")}
    if not answers["text"]:
        raise RowFault("answers is empty")
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        if context[start : start + len(text)] != text:
            raise RowFault(f"the answer {shown(text)} does not stand at character {start} of the context")
    return fields | {"answers": answers, "answer": answers["text"][0]}


SQUAD = KnownDataset(
    title="SQuAD 1.1",
    source="https://rajpurkar.github.io/SQuAD-explorer",
    revision="1.1",
    licence="CC BY-SA 4.0",
    files={
        "train": KnownFile(
            "train-v1.1.json",
            f"{SITE}/train-v1.1.json",
            rows=87599,
            sha256="3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
            read=read_articles,
        ),
        "dev": KnownFile(
            "dev-v1.1.json",
            f"{SITE}/dev-v1.1.json",
            rows=10570,
            sha256="95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
            read=read_articles,
        ),
    },
    columns=("title", "context", "question", "answers"),
    group="title",
    prompt=(
        "### Instruction: Answer the question with words of the context.\n\n"
        "### Context:\n{context}\n\n### Question:\n{question}\n\n### Answer:\n"
    ),
    wording={"answer": "the first of the answers"},
    completion="{answer}",
    metrics=("squad_em", "squad_f1"),
    anchor="BERT large: dev exact match 84.1, F1 90.9 (arXiv 1810.04805, table 2)",
    clean=with_answers,
)


@DATASETS.register("squad", SQUAD)
def squad(path: str | None) -> Source:
    """Questions whose answers stand in a paragraph of Wikipedia."""
    return SQUAD.open("squad", path)
