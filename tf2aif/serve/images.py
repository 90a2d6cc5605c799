"""Ready hooks for images: decode, resize, scale.

    from tf2aif.serve.images import image_decoder, scaler

    decode = image_decoder(size=(224, 224), color="rgb", name="input_1")
    preprocess = scaler(scale=1 / 127.5, mean=[1.0])

An image becomes what the dataset step makes of the same file: resized with Pillow's bilinear
filter, channels last, then `value * scale - mean`, divided by `std`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from ..engines import Array

Color = Literal["rgb", "bgr", "gray"]
MAX_PIXELS = 64 * 2**20


def decode_image(
    data: bytes, *, color: Color = "rgb", size: tuple[int, int] | None = None
) -> Array:
    """An encoded image as uint8, shape (height, width, channels); `size` is (height, width).

    Raises ValueError where the bytes are no image, are cut short, or hold over 64 Mi pixels.

    >>> png = io.BytesIO()
    >>> from PIL import Image
    >>> Image.new("RGB", (4, 2), (255, 0, 0)).save(png, "PNG")
    >>> decode_image(png.getvalue()).shape
    (2, 4, 3)
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"the image has {image.width} x {image.height} pixels, too many")
            pixels = image.convert("L" if color == "gray" else "RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not an image that can be read: {error}") from error
    if size is not None and pixels.size != (size[1], size[0]):
        pixels = pixels.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    array = np.asarray(pixels, np.uint8)
    if color == "gray":
        return array[:, :, np.newaxis]
    return array[:, :, ::-1] if color == "bgr" else array


def image_decoder(
    *, size: tuple[int, int], name: str, color: Color = "rgb"
) -> Callable[[bytes, str], dict[str, Array]]:
    """A `decode` hook: one encoded image -> uint8, shape (1, height, width, channels)."""

    def decode(body: bytes, content_type: str) -> dict[str, Array]:
        del content_type  # Pillow looks at the bytes
        return {name: decode_image(body, color=color, size=size)[np.newaxis]}

    return decode


def scaler(
    *,
    scale: float = 1.0,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    dtype: Literal["float32", "uint8"] = "float32",
) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """A `preprocess` hook: every input times `scale`, minus `mean`, divided by `std`.

    `mean` and `std` hold one value, or one a channel (the last axis); empty: left out.
    """

    def preprocess(inputs: dict[str, Array]) -> dict[str, Array]:
        return {
            name: _scale(array, scale, mean, std).astype(dtype) for name, array in inputs.items()
        }

    return preprocess


def _scale(array: Array, scale: float, mean: Sequence[float], std: Sequence[float]) -> Array:
    scaled: Array = array.astype(np.float32) * np.float32(scale)
    if mean:
        scaled = scaled - np.asarray(mean, np.float32)
    if std:
        scaled = scaled / np.asarray(std, np.float32)
    return scaled
