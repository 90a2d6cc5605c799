"""Folders of images as arrays of samples."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .errors import StepFailed
from .spec.recipe import Images

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

Array = NDArray[Any]


def list_images(folder: Path) -> tuple[str, ...]:
    """The images below a folder by relative name with `/`, sorted; hidden ones are left out."""
    found = (
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.suffix.lower() in ENDINGS and path.is_file()
    )
    return tuple(
        sorted(p.as_posix() for p in found if not any(part.startswith(".") for part in p.parts))
    )


def read_image(path: Path, how: Images) -> Array:
    """One image file as (height, width, channels): see `decode_image`."""
    try:
        with path.open("rb") as stream:
            return decode_image(stream, how, at=str(path))
    except FileNotFoundError as error:
        raise StepFailed("the image is gone", at=str(path)) from error


def decode_image(encoded: IO[bytes] | bytes, how: Images, *, at: str) -> Array:
    """An encoded image as (height, width, channels) of `how.dtype`.

    Resized bilinearly with antialiasing; an orientation tag is not applied, as TensorFlow's
    decoders do not. Then x * scale, minus mean, divided by std, in `how.color`'s channel order.

    Raises StepFailed for what is not a whole 8-bit image, with `at` as its place.
    """
    try:
        from PIL import Image
    except ImportError as error:
        hint = "pip install 'tf2aif[pictures]'"
        raise StepFailed("reading images needs Pillow", at=at, hint=hint) from error
    stream = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    height, width = how.size
    try:
        with Image.open(stream) as image:
            if image.mode[0] in "IF":
                hint = "convert it to 8 bits a channel, or read it with file.py:function"
                raise StepFailed(f"the image is of mode {image.mode}", at=at, hint=hint)
            plain = image.convert("L" if how.color == "gray" else "RGB")
            resized = plain.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(resized)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise StepFailed(f"the image cannot be read: {error}", at=at) from error
    return scale_pixels(pixels.reshape(height, width, -1), how)


def scale_pixels(pixels: Array, how: Images) -> Array:
    """RGB or gray values 0 to 255, shape (height, width, channels), as the model wants them."""
    check_scaling(how)
    ordered = pixels[..., ::-1] if how.color == "bgr" else pixels
    if how.dtype == "uint8":
        return np.ascontiguousarray(ordered)
    real: Array = ordered.astype(np.float32) * np.float32(how.scale)
    if how.mean:
        real = real - np.asarray(how.mean, np.float32)
    if how.std:
        real = real / np.asarray(how.std, np.float32)
    return real


def check_scaling(how: Images) -> None:
    """Raise StepFailed where scale, mean, std and dtype do not go together."""
    channels = 1 if how.color == "gray" else 3
    for name, values in (("mean", how.mean), ("std", how.std)):
        if len(values) not in (0, 1, channels):
            found = f"{len(values)} values for {channels} channels"
            raise StepFailed(f"images: {name} has {found}", hint="give one value, or one a channel")
    if 0 in how.std:
        raise StepFailed("images: std has a zero")
    if how.dtype == "uint8" and (how.scale != 1 or how.mean or how.std):
        hint = "leave scale, mean and std out, or use dtype: float32"
        raise StepFailed("images: uint8 values cannot be scaled", hint=hint)
