"""Rows that show an image: as many tokens in their text as the processor says, and pixels when a batch needs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ghosttune.data.encoding import Collator, Encoded, Encoder, Features, RowFeatures, padding_token
from ghosttune.data.files import unusable
from ghosttune.data.records import IMAGE, IMAGE_MARK, Record
from ghosttune.data.stored import Stored
from ghosttune.data.templates import Part
from ghosttune.errors import DataError, ModelError, listed

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

BLANKS = ((48, 32), (32, 48), (70, 70))
"""Width and height of the empty images that tell what the processor makes of any image."""


@dataclass(frozen=True)
class ImageFeatures(Features):
    """A row of language modelling, with the file of the image it shows."""

    image: str | None = None
    """None for a row of text alone."""


class ImageReader:
    """Makes image files what a model sees, by the model's own processor.

    Raises ModelError for a processor whose images are more than `pixel_values` of one shape and number of tokens.
    """

    def __init__(self, processor: Any):
        self.processor = processor
        self.kind = type(processor).__name__
        if getattr(processor, "image_token", None) != IMAGE_MARK:
            raise ModelError(
                f"{self.kind} does not mark images with {IMAGE_MARK}, as rows do; models like LLaVA 1.5 do"
            )
        self.token: int = processor.image_token_id
        seen = [self._seen(size) for size in BLANKS]
        if any(one != seen[0] for one in seen):
            raise ModelError(
                f"{self.kind} makes other pixels or tokens of images of other sizes; only models that see all images "
                "in one size can be trained, such as LLaVA 1.5"
            )
        self.tokens, self.shape = seen[0]
        """Tokens that every image takes, and the shape [1, channels, height, width] of its pixels."""

    def _seen(self, size: tuple[int, int]) -> tuple[int, tuple[int, ...]]:
        """(tokens, shape of the pixels) of an empty image."""
        from PIL.Image import new

        try:
            found = self.processor(images=new("RGB", size), text=IMAGE_MARK, return_tensors="pt")
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{self.kind} cannot say how many tokens an image takes ({error}); its processor_config.json must name "
                "patch_size and vision_feature_select_strategy as the model's config.json does"
            ) from error
        others = found.keys() - {"input_ids", "attention_mask", "pixel_values"}
        if others or "pixel_values" not in found:
            raise ModelError(f"{self.kind} makes of an image {listed(found)}; only pixel_values can be trained on")
        return int((found["input_ids"] == self.token).sum()), tuple(found["pixel_values"].shape)

    def pixels(self, paths: Sequence[str]) -> torch.Tensor:
        """[N, channels, height, width] of these files, in order; DataError with the path of one that is no image."""
        images = [opened(path) for path in paths]
        return self.processor.image_processor(images, return_tensors="pt")["pixel_values"]

    def require_seen_by(self, model: Any) -> None:
        """ModelError when the model makes other tokens of an image than the processor leaves room for."""
        import torch

        own = getattr(model.config, "image_token_id", None)
        if own != self.token:
            raise ModelError(
                f"config.json says that {own} is the token of an image (image_token_index), and the tokenizer's "
                f"{IMAGE_MARK} is {self.token}; they must agree"
            )
        with torch.no_grad():
            blank = torch.zeros(self.shape, dtype=model.dtype, device=model.device)
            features = model.get_image_features(pixel_values=blank, return_dict=True).pooler_output[0]
        if len(features) != self.tokens:
            raise ModelError(
                f"the model makes {len(features)} tokens of an image, and its processor leaves room for {self.tokens}; "
                "patch_size, vision_feature_select_strategy and num_additional_image_tokens in processor_config.json "
                "must fit the model's config.json"
            )


def opened(path: str) -> Image:
    """The whole image, in colours as a model sees it; DataError with its path when it cannot be read."""
    with _reading(path) as image:
        return image.convert("RGB")


def begins_as_image(path: str) -> bool:
    """Whether a file can be opened as an image; its pixels are not read."""
    try:
        with _reading(path):
            return True
    except DataError:
        return False


@contextmanager
def _reading(path: str) -> Iterator[Image]:
    """The file as an image; DataError with its path when it is none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "it is no image, or a damaged one" if isinstance(error, Image.UnidentifiedImageError) else error
        raise DataError(f"the image {path} cannot be opened: {reason}; replace it, or take out its rows") from error


def image_of(record: Record) -> str | None:
    """File of the image that a row shows; None for a row of text alone."""
    return record.columns.get(IMAGE)


class ImageEncoder(Encoder):
    """An encoder for rows with images among them; what an image takes is never cut and never trained."""

    def __init__(self, text: Encoder, images: ImageReader):
        super().__init__(text.template, text.max_length, text.loss_on)
        self.images = images

    def collator(self) -> ImageCollator:
        return ImageCollator(padding_token(self.tokenizer), self.images)

    def encode(self, records: Sequence[Record], truncated_share: float = 1.0) -> Encoded:
        """As for rows of text; DataError also for rows that name another number of images than they show."""
        encoded = super().encode(records, truncated_share)
        faults: list[str] = []
        features = Stored(self._shown(encoded.features, records, faults))
        if faults:
            raise unusable(f"{len(faults)} of {len(records)} rows do not show what they name", faults)
        return replace(encoded, features=features)

    def _shown(
        self, features: Sequence[RowFeatures], records: Sequence[Record], faults: list[str]
    ) -> Iterator[ImageFeatures]:
        for row in features:
            record, shown = records[row.index], row.input_ids == self.images.token
            image = image_of(record)
            if shown.sum() != (0 if image is None else self.images.tokens):
                faults.append(f"{record.place or record.example_id}: its text has not one {IMAGE_MARK} for each image")
            trained = row.trained & ~shown  # type: ignore[attr-defined]
            yield ImageFeatures(row.index, row.example_id, row.input_ids, trained, image)

    def _tokenised(self, parts: Iterable[Part]) -> dict[Part, np.ndarray]:
        return {part: self._expanded(ids) for part, ids in super()._tokenised(parts).items()}

    def _expanded(self, ids: np.ndarray) -> np.ndarray:
        return np.repeat(ids, np.where(ids == self.images.token, self.images.tokens, 1))

    def _spans(self, part: Part) -> list[tuple[int, int]]:
        """As for text; the tokens of an image stand for no characters, so that none of them is cut."""
        spans: list[tuple[int, int]] = []
        for left, right in super()._spans(part):
            is_image = part.text[left:right] == IMAGE_MARK
            spans += [(0, 0)] * self.images.tokens if is_image else [(left, right)]
        return spans


class ImageCollator(Collator):
    """Batches with the pixels of the images that their rows show, read from disk for each batch."""

    def __init__(self, pad_token_id: int, images: ImageReader):
        super().__init__(pad_token_id)
        self.images = images

    def __call__(self, rows: Sequence[Features]) -> dict[str, torch.Tensor]:
        """As for rows of text, and pixel_values [images, channels, height, width] where a row shows one."""
        paths = [row.image for row in rows if isinstance(row, ImageFeatures) and row.image is not None]
        batch = super().__call__(rows)
        return batch | {"pixel_values": self.images.pixels(paths)} if paths else batch
