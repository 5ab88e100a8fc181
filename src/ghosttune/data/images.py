"""Rows that show images: as many tokens in their text as the processor says, and pixels when a batch needs them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from ghosttune.data.chat_templates import picture_written
from ghosttune.data.encoding import SHOWN, Collator, Encoded, Encoder, Features, padding_token
from ghosttune.data.files import unusable
from ghosttune.data.records import Record
from ghosttune.data.templates import Part, Pictures
from ghosttune.errors import DataError, ModelError, listed

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

BLANKS = ((48, 32), (32, 48), (70, 70), (2000, 500), (500, 2000))
"""Width and height of the empty images that tell whether the processor makes the same number of tokens of any image."""

DATA_URL = "data:"

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""What is opened; others of Pillow's start programs (EPS) or are no images to look at."""

MOST_SIZES = 4096
"""How many widths and heights are remembered with what stands for them."""

TEXT_INPUTS = {"input_ids", "attention_mask", "text_replacement_offsets"}

KINDS = ("mm_token_type_ids", "token_type_ids")
"""What processors call the tensor that says of each token whether it stands for an image."""

ROTATED = (5, 6, 7, 8)
"""EXIF's orientations that lie on their side."""

ORIENTATION = 274


@dataclass(frozen=True)
class ImageFeatures(Features):
    """A row of language modelling, with the images it shows."""

    images: tuple[str, ...] = ()
    """Empty for a row of text alone."""


class ImagePrompt(list[int]):
    """Token ids of a prompt, with the images that some of them stand for."""

    def __init__(self, ids: Sequence[int], images: tuple[str, ...], reader: ImageReader):
        super().__init__(ids)
        self.images, self.reader = images, reader
        self.made: dict[str, torch.Tensor] | None = None

    def prepare(self) -> None:
        """Reads the images now, and keeps what they are to the model for when the prompt is answered alone."""
        self.made = self.reader.inputs([self.images])


class ImageReader:
    """Makes images what a model sees, by the model's own processor.

    Raises ModelError for a processor that cannot say what an image takes.
    """

    def __init__(self, processor: Any):
        self.processor = processor
        self.kind = type(processor).__name__
        token = getattr(processor, "image_token", None)
        if token is None or len(self._ids(token)) != 1:
            raise ModelError(f"{self.kind} has no token that stands for an image; models like LLaVA 1.5 have one")
        self.pictures = Pictures(token, _with_neighbours(picture_written(processor.tokenizer), token))
        self.placeholders: list[int] = list(processor.image_token_ids)
        """Tokens in whose place the model puts what it sees."""
        self._texts: dict[tuple[int, int], str] = {}
        texts = {self._blank(size) for size in BLANKS}
        self._text = texts.pop() if len(texts) == 1 else None
        self.kinds = next((name for name in KINDS if name in self._made([[_blank(BLANKS[0])]])), None)
        """Under which name the model is told which tokens stand for images; None where it is not."""

    def text(self, image: str) -> str:
        """What stands in the text for an image; its size is looked up where that makes a difference."""
        return self._text if self._text is not None else self._blank(size_of(image))

    def tokens(self, image: str) -> int:
        """How many tokens the model puts what it sees in the place of."""
        return self.seen_in(self._ids(self.text(image)))

    def seen_in(self, ids: Sequence[int] | np.ndarray) -> int:
        """How many of these tokens it is."""
        return int(np.isin(ids, self.placeholders).sum())

    def inputs(self, rows: Sequence[Sequence[str]]) -> dict[str, torch.Tensor]:
        """What the processor makes of the images of rows, in order: `pixel_values` and what belongs to it.

        Rows that show none have no part in it. DataError names an image that cannot be read.
        """
        shown = [[opened(image) for image in images] for images in rows if images]
        made = self._made(shown) if shown else {}
        return {name: value for name, value in made.items() if name not in (*TEXT_INPUTS, *KINDS)}

    def kinds_of(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """[B, T] under the name that the model knows: 1 where a token stands for an image; empty where it is not told.

        Padding stands for none.
        """
        import torch

        if self.kinds is None:
            return {}
        seen = torch.isin(ids, torch.tensor(self.placeholders, device=ids.device))
        return {self.kinds: seen.to(torch.int64)}

    def require_seen_by(self, model: Any) -> None:
        """ModelError when the model makes other tokens of an image than the processor leaves room for."""
        import torch

        own = getattr(model.config, "image_token_id", None)
        if own != self.placeholders[0]:
            raise ModelError(
                f"config.json says that {own} is the token of an image (image_token_index), and the tokenizer's is "
                f"{self.placeholders[0]}; they must agree"
            )
        made = self._made([[_blank(BLANKS[0])]])
        room = self.seen_in(made["input_ids"].numpy())
        own_inputs = {name: value for name, value in made.items() if name not in (*TEXT_INPUTS, *KINDS)}
        own_inputs["pixel_values"] = own_inputs["pixel_values"].to(model.dtype)
        with torch.no_grad():
            inputs = {name: value.to(model.device) for name, value in own_inputs.items()}
            features = model.get_image_features(**inputs, return_dict=True).pooler_output
        found = sum(one.shape[:-1].numel() for one in features)
        if found != room:
            raise ModelError(
                f"the model makes {found} tokens of an image, and its processor leaves room for {room}; "
                "patch_size, vision_feature_select_strategy and num_additional_image_tokens in processor_config.json "
                "must fit the model's config.json"
            )

    def _ids(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False).input_ids

    def _blank(self, size: tuple[int, int]) -> str:
        """What stands in the text for an image of this width and height."""
        if size not in self._texts:
            if len(self._texts) >= MOST_SIZES:
                self._texts.clear()
            (told,) = self._made([[_blank(size)]])["text_replacement_offsets"]
            self._texts[size] = told[0]["replacement"]
        return self._texts[size]

    def _made(self, rows: Sequence[Sequence[Image]]) -> dict[str, Any]:
        """What the processor makes of rows of images and of nothing else."""
        import torch

        settings = {"add_special_tokens": False, "padding": True, "return_tensors": "pt"}
        texts = [self.processor.image_token * len(images) for images in rows]
        try:
            found = self.processor(
                images=[list(images) for images in rows], text=texts, return_text_replacement_offsets=True, **settings
            )
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{self.kind} cannot say how many tokens an image takes ({error}); its processor_config.json must name "
                "patch_size and vision_feature_select_strategy as the model's config.json does"
            ) from error
        if "pixel_values" not in found or "text_replacement_offsets" not in found:
            raise ModelError(f"{self.kind} makes of an image {listed(found)}; pixel_values are needed")
        return {
            name: value
            for name, value in found.items()
            if isinstance(value, torch.Tensor) or name == "text_replacement_offsets"
        }


def _with_neighbours(written: str, token: str) -> str:
    """What a chat template writes for an image, where that is its token with others around it."""
    return written if written.count(token) == 1 and not any(mark.isspace() for mark in written) else token


def _blank(size: tuple[int, int]) -> Image:
    from PIL.Image import new

    return new("RGB", size)


def opened(image: str) -> Image:
    """The whole image, upright and in colours as a model sees it; DataError that names it when it cannot be read."""
    from PIL.ImageOps import exif_transpose

    with _reading(image) as found:
        return exif_transpose(found).convert("RGB")


def size_of(image: str) -> tuple[int, int]:
    """Width and height, upright; its pixels are not read. DataError as `opened`."""
    with _reading(image) as found:
        width, height = found.size
        return (height, width) if found.getexif().get(ORIENTATION) in ROTATED else (width, height)


def begins_as_image(image: str) -> bool:
    """Whether a file can be opened as an image; its pixels are not read."""
    try:
        size_of(image)
    except DataError:
        return False
    return True


@contextmanager
def _reading(image: str) -> Iterator[Image]:
    """The file or data: URL as an image; DataError that names it when it is none."""
    from PIL import Image

    try:
        with Image.open(bytes_of(image) if image.startswith(DATA_URL) else image, formats=FORMATS) as found:
            yield found
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "it is no image, or a damaged one"
        else:
            reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"the image {named(image)} cannot be opened: {reason}; replace it, or take out its rows"
        ) from error


def bytes_of(url: str) -> BytesIO:
    """What a data: URL holds; ValueError where that is not base64."""
    head, _, text = url.partition(",")
    if not head.endswith(";base64"):
        raise ValueError("its data: URL is not base64")
    try:
        return BytesIO(base64.b64decode(text, validate=True))
    except binascii.Error as error:
        raise ValueError(f"its data: URL is not base64: {error}") from error


def named(image: str) -> str:
    """An image as messages call it."""
    return f"{image[:32]}… ({len(image)} characters)" if image.startswith(DATA_URL) else image


class ImageEncoder(Encoder):
    """An encoder for rows with images among them; what an image takes is never cut and never trained."""

    def __init__(self, text: Encoder, images: ImageReader):
        template = copy(text.template)
        template.pictures = images.pictures
        super().__init__(template, text.max_length, text.loss_on)
        self.images = images

    def collator(self) -> ImageCollator:
        return ImageCollator(padding_token(self.tokenizer), self.images)

    def encode(self, records: Sequence[Record], truncated_share: float = 1.0) -> Encoded:
        """As for rows of text; DataError also for rows whose words hold what stands for an image."""
        encoded = super().encode(records, truncated_share)
        features: Sequence[Any] = encoded.features
        faults = [
            f"{records[row.index].place or row.example_id}: {self._misplaced(row.images)}"
            for row in features
            if not self._fits(row.input_ids, row.images)
        ]
        if faults:
            raise unusable(f"{len(faults)} of {len(records)} rows do not show what they name", faults)
        return encoded

    def _fits(self, ids: Sequence[int] | np.ndarray, images: Sequence[str]) -> bool:
        return self.images.seen_in(ids) == sum(map(self.images.tokens, images))

    def _misplaced(self, images: Sequence[str]) -> str:
        own = listed(map(repr, dict.fromkeys(self.tokenizer.convert_ids_to_tokens(self.images.placeholders))))
        return f"its words hold {own}, which stands for what the model sees, beside the {len(images)} images it shows"

    def _row(self, index: int, example_id: str, parts: list[Part], ids: np.ndarray, trained: np.ndarray) -> Features:
        images = tuple(image for part in parts for image in part.images)
        return ImageFeatures(index, example_id, ids, trained & ~np.isin(ids, self.images.placeholders), images)

    def _asking(self, parts: list[Part], ids: np.ndarray) -> list[int]:
        images = tuple(image for part in parts for image in part.images)
        if not self._fits(ids, images):
            raise DataError(f"{self._misplaced(images)}; word it otherwise")
        return ImagePrompt(ids.tolist(), images, self.images)

    def _text(self, part: Part) -> str:
        return "".join(text for text, _ in self._pieces(part))

    def _pieces(self, part: Part) -> list[tuple[str, tuple[int, int] | None]]:
        """The part's text in pieces; an image's as the processor writes it, with the characters it stands for."""
        pieces: list[tuple[str, tuple[int, int] | None]] = []
        left = iter(part.images)
        done = 0
        for found in self.images.pictures.place.finditer(part.text) if part.images else ():
            own = found.group().replace(self.images.pictures.token, self.images.text(next(left)))
            pieces += [(part.text[done : found.start()], None), (own, found.span())]
            done = found.end()
        return [*pieces, (part.text[done:], None)]

    def _trains(self, part: Part, length: int) -> np.ndarray:
        trains = super()._trains(part, length)
        if not part.images or not trains.any():
            return trains
        spans = np.array(self._spans(part)).reshape(-1, 2)
        return trains & (spans[:, 1] > 0)

    def _spans(self, part: Part) -> list[tuple[int, int]]:
        """As for text; what an image takes stands for no characters, so that none of it is cut."""
        spans = super()._spans(part)
        if not part.images:
            return spans
        origin = np.concatenate(
            [
                np.full(len(text), -1) if span else np.arange(start, start + len(text))
                for text, span, start in self._placed(part)
            ]
        )
        own = [origin[max(0, left) : right] for left, right in spans]
        return [(int(one[0]), int(one[-1]) + 1) if len(one) and (one >= 0).all() else (0, 0) for one in own]

    def _placed(self, part: Part) -> Iterator[tuple[str, tuple[int, int] | None, int]]:
        """The pieces, each with where it begins in the part's own text."""
        start = 0
        for text, span in self._pieces(part):
            yield text, span, start
            start = span[1] if span else start + len(text)


class ImageCollator(Collator):
    """Batches with what the processor makes of the images that their rows show, read from disk for each batch."""

    def __init__(self, pad_token_id: int, images: ImageReader):
        super().__init__(pad_token_id)
        self.images = images

    def __call__(self, rows: Sequence[Features]) -> dict[str, torch.Tensor]:
        """As for rows of text; behind SHOWN the model's inputs for the images that rows show, in order."""
        batch = super().__call__(rows)
        shown = self.images.inputs([row.images for row in rows if isinstance(row, ImageFeatures)])
        ids = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -1)
        return batch | {f"{SHOWN}{name}": value for name, value in (shown | self.images.kinds_of(ids)).items()}


def shown_inputs(prompts: Sequence[Sequence[int]], ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the model needs besides the token ids [B, T] of prompts that show images; empty where none does."""
    seeing = [prompt for prompt in prompts if isinstance(prompt, ImagePrompt) and prompt.images]
    if not seeing:
        return {}
    reader, alone = seeing[0].reader, seeing[0].made if len(seeing) == 1 else None
    made = reader.inputs([prompt.images for prompt in seeing]) if alone is None else alone
    return made | reader.kinds_of(ids.masked_fill(mask == 0, -1))


def images_in(prompt: Sequence[int]) -> tuple[str, ...]:
    """The images that a prompt shows."""
    return prompt.images if isinstance(prompt, ImagePrompt) else ()
