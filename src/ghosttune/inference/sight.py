"""The images of a request: inside bounds before their pixels are read, whoever sent them, and whatever is in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ghosttune.data.encoding import Encoder
from ghosttune.data.images import ImagePrompt, bytes_of
from ghosttune.errors import GhosttuneError
from ghosttune.inference.pipeline import Pipeline
from ghosttune.inference.protocol import RequestError

SERVED = ("PNG", "JPEG", "WEBP", "GIF")
"""What OpenAI's call takes; of several frames the first is shown."""

ELONGATED = 50
"""Sides of an image, one as a multiple of the other: processors bring the shorter one to hundreds of pixels."""

SCAN, MOST_SCANS = b"\xff\xda", 100
"""Each scan of a JPEG goes over all of its pixels, and a scan may have no bytes to speak of."""

IMAGE_TOKEN, VIDEO_TOKEN = "image_token_id", "video_token_id"
"""Under which names a configuration says in place of which tokens the model puts what it sees."""


@dataclass(frozen=True)
class ImageLimits:
    """What the images of one request may be together."""

    count: int = 16
    pixels: int = 1 << 24
    body_bytes: int = 8 << 20
    """By which a body may be longer than one without images."""


IMAGE_LIMITS = ImageLimits()


class Sight:
    """What a served model can be shown; `why_blind` says why nothing, None where it sees."""

    def __init__(self, name: str, pipeline: Pipeline, limits: ImageLimits):
        self._pipeline, self._limits = pipeline, limits
        self.why_blind = _why_blind(name, pipeline)
        config = pipeline.model.config if pipeline.sees else None
        self._image, self._video = (getattr(config, name, None) for name in (IMAGE_TOKEN, VIDEO_TOKEN))

    def encoder(self, images: Sequence[str]) -> Encoder:
        """What renders turns that show these; RequestError where the model or their number or size forbids it."""
        if not images:
            return self._pipeline.encoder
        if self.why_blind is not None:
            raise _refusal(self.why_blind)
        if len(images) > self._limits.count:
            raise _refusal(f"{len(images)} images, at most {self._limits.count}; send fewer")
        pixels = sum(_pixels(number, image) for number, image in enumerate(images))
        if pixels > self._limits.pixels:
            raise _refusal(
                f"the images have {pixels} pixels together, at most {self._limits.pixels}; send smaller ones"
            )
        return self._pipeline.seeing

    def require_unsaid(self, ids: Sequence[int]) -> None:
        """RequestError for words that hold what stands for an image or video; an ImagePrompt shows what it holds."""
        if self._video in ids or (self._image in ids and not isinstance(ids, ImagePrompt)):
            raise RequestError("the words hold a token that stands for what the model sees; word it otherwise")

    def look(self, ids: Sequence[int]) -> None:
        """Reads the pixels of a prompt's images once and for all; RequestError where that fails."""
        if isinstance(ids, ImagePrompt) and ids.images:
            try:
                ids.prepare()
            except Exception as error:  # decoders and processors raise what they please, and the bytes are a stranger's
                raise _refusal(f"an image cannot be read: {_said(error)}") from error


def _why_blind(name: str, pipeline: Pipeline) -> str | None:
    if not pipeline.sees:
        return f"{name} does not see: it takes text alone"
    try:
        pipeline.seeing  # noqa: B018  # loads what makes images its inputs, or says what is missing
    except GhosttuneError as error:
        return f"{name} cannot be shown images: {error}"
    return None


def _pixels(number: int, image: str) -> int:
    """How many it has, by what it says in front; RequestError for what is no image, or an odd one."""
    from PIL import Image

    try:
        data = bytes_of(image)
        with Image.open(data, formats=SERVED) as found:
            width, height = found.size
    except Exception as error:  # as above
        raise _refusal(f"image {number} cannot be read: {_said(error)}") from error
    if max(width, height) > ELONGATED * min(width, height):
        raise _refusal(f"image {number} is {width} x {height}; one side may be {ELONGATED} times the other")
    if data.getvalue().count(SCAN) > MOST_SCANS:
        raise _refusal(f"image {number} has more than {MOST_SCANS} scans; save it anew")
    return width * height


def _said(error: Any) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return f"it is no {', '.join(SERVED[:-1])} or {SERVED[-1]}, or a damaged one"
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _refusal(text: str) -> RequestError:
    return RequestError(text, param="messages")
