"""Turn one encoded image into an array of the bank."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from l2f_jax.data.sources.source import Item

WHITE = (255, 255, 255, 255)
RESIZE = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


class UnreadableImage(ValueError):
    """An image that is empty, truncated or of no known format; the message names it."""


def decode(item: Item, size: int, ink: bool) -> tuple[np.ndarray, tuple[int, int]]:
    """Read an image as uint8 [size, size, 3], or [size, size, 1] for `ink`.

    A file is read `as_seen`. Resizing is Pillow's antialiased one after conversion to
    RGB, without keeping the aspect ratio: bicubic for photographs, Lanczos for ink.

    Returns:
      the image, and its width and height, upright, before resizing.
    Raises:
      UnreadableImage: whatever is wrong with it.
    """
    try:
        raw = item.read()
        is_file = isinstance(raw, bytes)
        image = as_seen(Image.open(io.BytesIO(raw))) if is_file else _wrap(raw)
        image = _ink(image) if ink else image.convert("RGB")
    except UnidentifiedImageError:
        raise UnreadableImage(f"{item.where}: not an image") from None
    except Exception as error:  # a broken file makes a decoder raise nearly anything
        raise UnreadableImage(f"{item.where}: {error}") from None
    original = image.size
    if original != (size, size):
        image = image.resize((size, size), RESIZE[resize_method(ink)])
    return np.asarray(image).reshape(size, size, -1), original


def as_seen(image: Image.Image) -> Image.Image:
    """Return an image upright, as its camera recorded, opaque, on white, of 8 bits.

    One without an orientation, without transparency and of 8 bits passes as it is; of
    16 bits of grey the upper 8 are kept.
    Raises:
      ValueError: grey levels of 32 bits, whose black and white no file tells.
    """
    file_format, image = image.format, ImageOps.exif_transpose(image)
    # Pillow would clip them at 255. A PNG's "I" are the 16 bits of older Pillows.
    if image.mode.startswith("I;16") or (image.mode, file_format) == ("I", "PNG"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"grey levels of 32 bits (Pillow's mode {image.mode!r}); convert it to 8 "
            "or 16 bits"
        )
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)


def resize_method(ink: bool) -> str:
    """Name the resampling filter of `decode`."""
    return "lanczos" if ink else "bicubic"


def _wrap(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise ValueError(f"{array.dtype} {array.shape} is not uint8 [H, W, 1 or 3]")
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def _ink(image: Image.Image) -> Image.Image:
    """Return ink 255 on paper 0; paper is the brightest level, 1 or 255."""
    paper = np.asarray(image.convert("L")).astype(np.float32)
    if paper.max() == 0.0:
        raise ValueError("black all over")
    ink = 255.0 - np.round(paper * (255.0 / paper.max()))
    return Image.fromarray(ink.astype(np.uint8))
