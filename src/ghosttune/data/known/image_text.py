"""Conversations about images in LLaVA's layout (Liu et al. 2023, arXiv 2304.08485).

A row has `conversations` and, where it shows one, `image`: a path below the folder `images` beside its file, or below
the file's own folder where there is none. The row's text says `<image>` where the image stands.
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
from ghosttune.data.files import Fields, Placed, fingerprint, read_file, shown, unusable
from ghosttune.data.records import IMAGE, IMAGE_MARK, Record, Records, records_of
from ghosttune.data.sources import Source, example_id, refuse_repeated, source_files, with_split
from ghosttune.data.stored import Each, Stored
from ghosttune.errors import DataError
from ghosttune.registry import DATASETS

IMAGES = "images"
"""Folder beside a file of rows that holds what they show."""

IMAGE_TEXT = KnownDataset(
    title="Conversations about images, in the layout of LLaVA-Instruct-150K",
    source="data.train.path: a file, or a folder with train.json, if you like dev.json and test.json, and images; "
    "LLaVA's are at https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K, their images in COCO train2017",
    revision="the sha256 of every file of rows, and of the images' names and sizes, recorded",
    licence="that of the rows and images; LLaVA's rows CC BY 4.0, COCO's images as their owners on Flickr say",
    files={},
    columns=("conversations",),
    kept=(IMAGE,),
    group="the image where a row shows one, else the prompt",
    prompt="{conversations}",
    completion="{answers}",
    wording={
        "conversations": "turns of human and gpt; <image> becomes as many tokens as the model's processor says",
        "answers": "every turn of gpt",
    },
    metrics=("perplexity",),
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
    found = sorted({record.columns[IMAGE] for record in records if IMAGE in record.columns})
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
    """The rows of a file; DataError lists those that cannot be used, and those whose image is not there."""
    folder = file.parent.absolute()
    root = folder / IMAGES if (folder / IMAGES).is_dir() else folder
    faults: list[str] = []
    images: list[Path | None] = []
    for place, fields in rows:
        try:
            images.append(_image(fields, root))
        except RowFault as fault:
            faults.append(f"{place}: {fault}")
    if faults:
        raise unusable(f"{file}: {len(faults)} of {len(rows)} rows cannot be used", faults)
    _require_there(rows, images, root)
    talks = Each(rows, lambda row: (row[0], {name: value for name, value in row[1].items() if name != IMAGE}))
    records = records_of(with_split(talks, split), "messages", ids)
    return (_showing(record, image, root) for record, image in zip(records, images, strict=True))


def _image(fields: Fields, root: Path) -> Path | None:
    """The file that a row shows; RowFault when its text does not show it once, or shows one that the row has not."""
    name, talk = fields.get(IMAGE), fields.get("messages", fields.get("conversations"))
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise RowFault(f"{IMAGE} must be the path of one image, is {shown(name)}")
    turns = [turn for turn in talk if isinstance(turn, dict)] if isinstance(talk, list) else []
    said = [str(turn.get("value", turn.get("content"))).count(IMAGE_MARK) for turn in turns]
    asked = [turn.get("from", turn.get("role")) in ("human", "user") for turn in turns]
    if name is None and sum(said):
        raise RowFault(f"says {IMAGE_MARK} and names no {IMAGE}")
    if name is not None and sum(said) != 1:
        raise RowFault(f"names the {IMAGE} {shown(name)} and says {IMAGE_MARK} {sum(said)} times; it must once")
    if any(count and not human for count, human in zip(said, asked, strict=True)):
        raise RowFault(f"says {IMAGE_MARK} where gpt speaks; only the human shows images")
    return None if name is None else root / normpath(name)


def _require_there(rows: Sequence[Placed], images: Sequence[Path | None], root: Path) -> None:
    """DataError naming every image that is not there, the first ones in full."""
    there = {image: image.is_file() for image in dict.fromkeys(images) if image is not None}
    missing = [image for image, is_there in there.items() if not is_there]
    if missing:
        lacking = [
            f"{place}: {fields[IMAGE]} is not there"
            for (place, fields), image in zip(rows, images, strict=True)
            if image is not None and not there[image]
        ]
        title = f"{len(missing)} of {len(there)} images, which {len(lacking)} rows show, are not below {root}"
        raise unusable(title, lacking)


def _showing(record: Record, image: Path | None, root: Path) -> Record:
    """The row with its image; rows that show the same one stay together, and draws are the same wherever it lies."""
    if image is None:
        return record
    name = str(image.relative_to(root)) if image.is_relative_to(root) else str(image)
    group = f"{IMAGE} {name} {image.stat().st_size}"
    return replace(record, columns={IMAGE: str(image)}, metadata=record.metadata | {IMAGE: name}, group=group)


def _fingerprint_of(path: str, images: Sequence[str]) -> dict[str, str]:
    """Of the names and sizes of all images: their bytes are read when they are shown."""
    if not images:
        return {}
    lines = "".join(f"{Path(image).name} {Path(image).stat().st_size}\n" for image in images)
    return {f"{path} images": hashlib.sha256(lines.encode()).hexdigest()}
