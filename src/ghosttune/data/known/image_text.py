"""Conversations about images in LLaVA's layout (Liu et al. 2023, arXiv 2304.08485).

A row has `conversations` and, where it shows some, `image` or `images`: paths below the folder `images` beside its
file, or below the file's own folder where there is none. The row's text says `<image>` where an image stands, or has a
part of the type `image` there, as the rows of TRL do.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from os.path import normpath
from pathlib import Path

from ghosttune.data.columns import RowFault
from ghosttune.data.dataset import KnownDataset, without_judges
from ghosttune.data.files import Fields, Placed, fingerprint, read_file, unusable
from ghosttune.data.messages import role_of
from ghosttune.data.records import Record, Records, records_of
from ghosttune.data.showing import IMAGE, image_root, showing, with_marks
from ghosttune.data.sources import Source, example_id, refuse_repeated, source_files, with_split
from ghosttune.data.stored import Each, Stored
from ghosttune.data.turns import Turn, images_of
from ghosttune.errors import DataError, listed
from ghosttune.registry import DATASETS

IMAGE_TEXT = KnownDataset(
    title="Conversations about images, in the layout of LLaVA-Instruct-150K",
    source="data.train.path: a file, or a folder with train.json, if you like dev.json and test.json, and images; "
    "LLaVA's are at https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K, their images in COCO train2017",
    revision="the sha256 of every file of rows, and of the images' names and sizes, recorded",
    licence="that of the rows and images; LLaVA's rows CC BY 4.0, COCO's images as their owners on Flickr say",
    files={},
    columns=("conversations",),
    kept=(IMAGE,),
    group="the images where a row shows some, else the prompt",
    prompt="{conversations}",
    completion="{answers}",
    wording={
        "conversations": "turns of human and gpt; <image> becomes as many tokens as the model's processor says",
        "answers": "every turn of gpt",
    },
    metrics=("exact_match", "chrf", "perplexity"),
    anchor="none",
)


@DATASETS.register("image_text", IMAGE_TEXT)
def image_text(path: str | None) -> Source:
    """Conversations about images, in LLaVA's layout, with rows of text alone among them if you like."""
    if path is None:
        raise DataError("data.train.name image_text needs data.train.path: the rows, a file or a folder")
    files = source_files(Path(path))
    rows = [(split, file, read_file(file)) for split, file in files.items()]
    ids = _distinct(
        [
            example_id(fields, file.name.split(".")[0], split, position)
            for split, file, placed in rows
            for position, (_, fields) in enumerate(placed)
        ]
    )
    refuse_repeated(ids, Stored(row for _, _, placed in rows for row in placed))
    left = iter(ids)
    records = Records.of(
        record for split, file, placed in rows for record in _records(file, placed, [next(left) for _ in placed], split)
    )
    fingerprints = {str(file): fingerprint(file) for file in files.values()}
    found = sorted({image for record in records for image in images_of(record.turns)})
    kept, dropped = without_judges(records)
    return Source(kept, "messages", fingerprints | _fingerprint_of(path, found), dict(dropped))


def _distinct(ids: Sequence[str]) -> list[str]:
    """The ids, numbered where several rows have one: LLaVA's are those of images, which several rows show."""
    count, seen = Counter(ids), Counter[str]()
    distinct = []
    for own in ids:
        seen[own] += 1
        distinct.append(own if count[own] == 1 else f"{own}-{seen[own]}")
    return distinct


def _records(file: Path, rows: Sequence[Placed], ids: list[str], split: str | None) -> Iterator[Record]:
    """The rows of a file; DataError lists those that cannot be used, and those whose images are not there."""
    root = image_root(file)
    faults: list[str] = []
    images: list[list[str]] = []
    for place, fields in rows:
        try:
            images.append(_images(fields))
        except RowFault as fault:
            faults.append(f"{place}: {fault}")
    if faults:
        raise unusable(f"{file}: {len(faults)} of {len(rows)} rows cannot be used", faults)
    _require_there(rows, images, root)
    talks = Each(rows, lambda row: (row[0], with_marks(row[1])[0]))
    records = records_of(with_split(talks, split), "messages", ids)
    return (_showing(record, names, root) for record, names in zip(records, images, strict=True))


def _images(fields: Fields) -> list[str]:
    """The images that a row names; RowFault when its words do not show each once."""
    row, names = with_marks(fields)
    talk = row.get("messages", row.get("conversations"))
    turns = [
        Turn(str(role_of(message)), _words(message))
        for message in (talk if isinstance(talk, list) else ())
        if isinstance(message, dict)
    ]
    showing(turns, names)
    return names


def _words(message: Fields) -> str:
    """All that is said, whatever it is: what else may be wrong with it is found where it is read."""
    said = message.get("content", message.get("value"))
    parts = said if isinstance(said, list) else [said]
    return "".join(str(part.get("text", part.get("value"))) if isinstance(part, dict) else str(part) for part in parts)


def _require_there(rows: Sequence[Placed], images: Sequence[Sequence[str]], root: Path) -> None:
    """DataError naming every image that is not there, the first ones in full."""
    there = {name: (root / normpath(name)).is_file() for names in images for name in names}
    missing = [name for name, is_there in there.items() if not is_there]
    if missing:
        lacking = [
            f"{place}: {listed(name for name in names if not there[name])} is not there"
            for (place, _), names in zip(rows, images, strict=True)
            if not all(there[name] for name in names)
        ]
        title = f"{len(missing)} of {len(there)} images, which {len(lacking)} rows show, are not below {root}"
        raise unusable(title, lacking)


def _showing(record: Record, names: Sequence[str], root: Path) -> Record:
    """The row with its images; rows that show the same ones stay together, and draws are the same wherever they lie."""
    if not names:
        return record
    paths = [root / normpath(name) for name in names]
    known = [str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in paths]
    group = f"{IMAGE} " + " ".join(f"{name} {path.stat().st_size}" for name, path in zip(known, paths, strict=True))
    turns = showing(record.turns, [str(path) for path in paths])
    return replace(record, turns=turns, metadata=record.metadata | {IMAGE: listed(known, len(known))}, group=group)


def _fingerprint_of(path: str, images: Sequence[str]) -> dict[str, str]:
    """Of the names and sizes of all images: their bytes are read when they are shown."""
    if not images:
        return {}
    lines = "".join(f"{Path(image).name} {Path(image).stat().st_size}\n" for image in images)
    return {f"{path} images": hashlib.sha256(lines.encode()).hexdigest()}
