"""A user's own image files, as the images of a bank: to adapt to, or to label."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from l2f_jax.data.sources.decode import RESIZE, as_seen, resize_method
from l2f_jax.data.sources.tree import is_image


def read_image(path: str | Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Read an image file as uint8 of the given shape (H, W, C).

    Transparent parts become white, the orientation that a camera recorded is applied,
    and resizing is antialiased and does not keep the aspect ratio, all as for a bank.
    With one channel the image is a drawing: ink 255 on paper 0, whatever the colours of
    both; the paper's level is taken from the border.

    Raises:
      ValueError: the file is missing or no readable image, a drawing is blank, or C is
        neither 1 nor 3.
    """
    height, width, channels = shape
    if channels not in (1, 3):
        raise ValueError(f"an image file has 1 or 3 channels, `shape` {shape} another")
    try:
        image = as_seen(Image.open(path))
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image") from None
    except Exception as error:  # a broken file makes a decoder raise nearly anything
        raise ValueError(f"{path} cannot be read: {error}") from None
    image = _ink(image.convert("L"), path) if channels == 1 else image.convert("RGB")
    image = image.resize((width, height), RESIZE[resize_method(channels == 1)])
    return np.asarray(image).reshape(shape)


def read_classes(
    folder: str | Path, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read a folder with a sub-folder of images for each class.

    Returns:
      images uint8 [n, H, W, C], labels [n] int32, and the names of the classes in the
      order of their labels.
    Raises:
      ValueError: no sub-folder, one without images, images beside them, and what
        `read_image` raises.
    """
    folder = Path(folder)
    classes = [path for path in _entries(folder) if path.is_dir()]
    if not classes:
        raise ValueError(f"{folder} holds no sub-folders, one for each class")
    if stray := [path for path in _entries(folder) if _is_image(path)]:
        raise ValueError(f"{stray[0]} lies outside the sub-folders of the classes")
    files = [find_images(path) for path in classes]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), list(map(len, files)))
    images = [read_image(path, shape) for paths in files for path in paths]
    return np.stack(images), labels, [path.name for path in classes]


def find_images(path: str | Path) -> list[Path]:
    """Return the image files directly in a folder, sorted, or the file that is named.

    Raises ValueError if there is none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    found = [entry for entry in _entries(path) if _is_image(entry)]
    if not found:
        raise ValueError(f"{path} holds no images")
    return found


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        fault = "is no folder" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {fault}")
    return sorted(path for path in folder.iterdir() if path.name[0] != ".")


def _is_image(path: Path) -> bool:
    return path.is_file() and is_image(path.name)


def _ink(grey: Image.Image, path: str | Path) -> Image.Image:
    """Return the distance from the paper's level, stretched to 0 .. 255."""
    level = np.asarray(grey).astype(np.float32)
    border = np.concatenate([level[0], level[-1], level[:, 0], level[:, -1]])
    ink = np.abs(level - np.median(border))
    if ink.max() == 0.0:
        raise ValueError(f"{path} is blank")
    return Image.fromarray(np.round(ink * (255.0 / ink.max())).astype(np.uint8))
