"""A corpus of your own: a folder of texts, one file or more per domain, cut into blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from ghosttune.data.blocks import Document, gpt2_tokens, in_blocks
from ghosttune.data.dataset import KnownDataset
from ghosttune.data.files import READABLE, fingerprint, kind_of, read_document, read_file, read_text
from ghosttune.data.records import Records
from ghosttune.data.sources import SPLIT_NAMES, Source
from ghosttune.data.stored import Each
from ghosttune.errors import DataError, listed
from ghosttune.registry import DATASETS

MANIFEST = "manifest.json"
KINDS = ".bin (GPT-2 tokens as uint16), ." + ", .".join(READABLE)

TEXT = KnownDataset(
    title="A corpus of your own",
    source="data.train.path: a file, or a folder with a file or more per domain",
    revision=f"the sha256 of every file, recorded, and compared with {MANIFEST} where the folder has one",
    licence="that of the texts",
    files={},
    columns=("text",),
    group="the document where a file holds several, else the block",
    prompt="",
    completion="{text}",
    stop="an end-of-text token stands behind every document; blocks of data.max_length are trained whole",
    metrics=("perplexity",),
    anchor="none",
)


@DATASETS.register("text", TEXT)
def text(path: str | None) -> Source:
    """Any corpus in blocks, with domains: text, JSONL and the like, GPT-2 tokens."""
    if path is None:
        raise DataError("data.train.name text needs data.train.path: the corpus, a file or a folder")
    files = corpus_files(Path(path))
    documents = [documents_of(file) for file in files]
    names = Counter(document.name for document in chain.from_iterable(documents))
    if twice := sorted(name for name, count in names.items() if count > 1):
        raise DataError(f"{path} holds several files called {listed(twice)}; blocks are named after their file")
    fingerprints = {str(file): fingerprint(file) for file in files}
    return Source(Records.of([]), "text", fingerprints, in_blocks=partial(_blocks, documents))


def _blocks(documents: Sequence[Sequence[Document]], tokenizer: Any, length: int) -> Records:
    return in_blocks(chain.from_iterable(documents), tokenizer, length)


def corpus_files(path: Path) -> list[Path]:
    """The file, those its folder's manifest names, or all in the folder; DataError when one is missing or of no use."""
    if not path.exists():
        raise DataError(f"{path} does not exist; data.train.path is a file or a folder of {KINDS}")
    if path.is_file():
        return [_readable(path)]
    manifest = path / MANIFEST
    if manifest.is_file():
        return _listed_files(path, manifest)
    found = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
    if not found:
        raise DataError(f"{path} holds no files; readable are {KINDS}")
    return [_readable(file) for file in found]


def _listed_files(path: Path, manifest: Path) -> list[Path]:
    """The files of a manifest {name: sha256 or null}, checked."""
    expected = read_document(manifest)
    if not isinstance(expected, dict) or not expected:
        raise DataError(f"{manifest} must hold {{file name: sha256 or null}}")
    missing = [name for name in expected if not (path / name).is_file()]
    if missing:
        raise DataError(f"{path} lacks {listed(missing, 50)}; {MANIFEST} names {listed(expected, 50)}")
    changed = [name for name, sha256 in expected.items() if sha256 not in (None, fingerprint(path / name))]
    if changed:
        raise DataError(f"{path}: {listed(changed, 50)} differ from the sha256 in {MANIFEST}")
    return [_readable(path / name) for name in expected]


def _readable(file: Path) -> Path:
    if kind_of(file) is None and file.suffix != ".bin":
        raise DataError(f"{file} is not readable; a corpus holds {KINDS}, and {MANIFEST} can name those to take")
    return file


def documents_of(file: Path) -> Sequence[Document]:
    """The documents of a file: a whole text or token file is one stream, every row of the others a document."""
    stem = file.name.split(".")[0]
    domain, split = _domain_and_split(stem, file.parent.name)
    if file.suffix == ".bin":
        return [Document(stem, domain, split, gpt2_tokens(file), is_whole=False)]
    if kind_of(file) == "txt":
        return [Document(stem, domain, split, read_text(file), is_whole=False)]
    rows = read_file(file)
    faults = [place for place, fields in rows if not isinstance(fields.get("text"), str) or not fields["text"].strip()]
    if faults:
        raise DataError(f"{file}: {len(faults)} of {len(rows)} rows have no text in a column text: {listed(faults, 5)}")

    def document(place: int) -> Document:
        fields = rows[place][1]
        return Document(f"{stem}-{place:06d}", str(fields.get("domain") or domain), split, fields["text"], True)

    return Each(range(len(rows)), document)


def _domain_and_split(stem: str, folder: str) -> tuple[str, str | None]:
    """What `arxiv_train`, `arxiv` and `train` stand for: the domain (else the folder's name), and the split."""
    head, _, last = stem.replace("-", "_").rpartition("_")
    split = SPLIT_NAMES.get(last.lower())
    return (stem, None) if split is None else (stem[: len(head)] or folder, split)
