"""One view of a folder, a zip and a tar: sorted file names, and their bytes."""

import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from l2f_jax.data.sources.source import Item
from l2f_jax.data.sources.unpickle import load_entries

IMAGE_SUFFIXES = (  # of what Pillow reads
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".webp", ".avif", ".gif"),
    *(".tif", ".tiff", ".bmp", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"),
)
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LARGEST_TAR = 2**31  # bytes; a tar is held in memory


class Tree(NamedTuple):
    """Files below one root.

    where: the root, for messages.
    files: their relative paths with "/", sorted; hidden files are left out.
    folders: the same for folders, so that an empty one is noticed.
    read: relative path -> content.
    """

    where: str
    files: tuple[str, ...]
    folders: tuple[str, ...]
    read: Callable[[str], bytes]

    def under(self, folder: str) -> "Tree":
        """Return the tree below one of its folders ("" is the tree itself)."""
        if not folder:
            return self
        prefix = folder + "/"
        cut = len(prefix)
        return Tree(
            f"{self.where}/{folder}",
            tuple(name[cut:] for name in self.files if name.startswith(prefix)),
            tuple(name[cut:] for name in self.folders if name.startswith(prefix)),
            lambda name: self.read(prefix + name),
        )

    def item(self, name: str) -> Item:
        """Return the image file `name`."""
        return Item(f"{self.where}/{name}", lambda: self.read(name))

    def pickle(self, name: str, *keys: str) -> list[Any]:
        """Return the named entries of the pickled dictionary in a file."""
        raw = self._read_known(name)
        return load_entries(io.BytesIO(raw), f"{self.where}/{name}", *keys)

    def lines(self, name: str) -> list[str]:
        """Return the lines of a text file."""
        return self._read_known(name).decode().splitlines()

    def _read_known(self, name: str) -> bytes:
        if name not in self.files:
            raise ValueError(f"{self.where}/{name}: missing")
        return self.read(name)

    def tops(self) -> list[str]:
        """Return the folders of the first level."""
        return [name for name in self.folders if "/" not in name]

    def images(self) -> dict[str, list[str]]:
        """Return folder -> image files directly in it, empty folders included.

        A folder that only holds other folders is not listed.
        """
        found: dict[str, list[str]] = {name: [] for name in self.folders}
        for name in self.files:
            if is_image(name):
                found.setdefault(_parent(name), []).append(name)
        inner = {_parent(name) for name in self.folders}
        return {
            folder: names
            for folder, names in sorted(found.items())
            if names or folder not in inner
        }

    def others(self) -> list[str]:
        """Return the files that do not look like images."""
        return [name for name in self.files if not is_image(name)]

    def root_of(self, name: str) -> str | None:
        """Return the folder that holds the file or folder `name`, the outermost one."""
        holders = [
            path[: -len(name)].rstrip("/")
            for path in (*self.files, *self.folders)
            if path == name or path.endswith("/" + name)
        ]
        return min(holders, key=lambda path: (path.count("/"), path), default=None)


def is_image(name: str) -> bool:
    """Tell whether a file's name is that of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def open_tree(path: str | Path) -> Tree:
    """Open a folder or archive; nothing is unpacked to the disk.

    Raises ValueError if there is nothing there, the archive is damaged or of no known
    kind, or a member is a link or points outside the archive.
    """
    path = Path(path)
    if path.is_dir():
        return _folder_tree(path)
    if not path.exists():
        raise ValueError(f"`{path}` does not exist")
    if not path.name.lower().endswith(ARCHIVE_SUFFIXES):
        kinds = ", ".join(ARCHIVE_SUFFIXES)
        raise ValueError(f"`{path}` is neither a folder nor one of {kinds}")
    try:
        is_zip = path.name.lower().endswith(".zip")
        return _zip_tree(path) if is_zip else _tar_tree(path)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
    ) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise ValueError(
            f"`{path}` is not a complete archive ({reason}); was it downloaded whole?"
        ) from None


def join(where: str, trees: Iterable[Tree]) -> Tree:
    """Return the union of trees, e.g. of the two zips of one data set."""
    trees = list(trees)
    owner = {name: tree for tree in trees for name in tree.files}
    folders = {name for tree in trees for name in tree.folders}
    return Tree(
        where,
        tuple(sorted(owner)),
        tuple(sorted(folders)),
        lambda name: owner[name].read(name),
    )


def _folder_tree(path: Path) -> Tree:
    files, folders = [], []
    # Links are followed: inside one's own folder they are a usual way to keep data.
    for base, inner, names in os.walk(path, followlinks=True):
        inner[:] = [name for name in inner if not _hidden(name)]
        relative = PurePosixPath(Path(base).relative_to(path).as_posix())
        folders += [str(relative / name) for name in inner]
        files += [str(relative / name) for name in names if not _hidden(name)]
    return Tree(
        str(path),
        tuple(sorted(files)),
        tuple(sorted(folders)),
        lambda name: (path / name).read_bytes(),
    )


def _zip_tree(path: Path) -> Tree:
    archive = zipfile.ZipFile(path)
    files, folders = {}, []
    for member in archive.infolist():
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"`{path}` holds a link, {member.filename!r}; refused")
        name = _inside(path, member.filename)
        if member.is_dir():
            folders.append(name)
        else:
            files[name] = member

    def read(name: str) -> bytes:
        return archive.read(files[name])

    return _member_tree(path, list(files), folders, read)


def _tar_tree(path: Path) -> Tree:
    if path.stat().st_size > LARGEST_TAR:
        raise ValueError(f"`{path}` is too large to be read in place; unpack it first")
    content, folders = {}, []
    with tarfile.open(path) as archive:
        for member in archive:
            if not (member.isfile() or member.isdir()):
                raise ValueError(
                    f"`{path}` holds {member.name!r}, a link or device; refused"
                )
            name = _inside(path, member.name)
            file = archive.extractfile(member)
            if file is None:
                folders.append(name)
            elif not _hidden(name):
                content[name] = file.read()
    return _member_tree(path, list(content), folders, content.__getitem__)


def _member_tree(
    path: Path, files: list[str], folders: list[str], read: Callable[[str], bytes]
) -> Tree:
    """Return the tree of an archive, which may list its folders or its files alone."""
    files = sorted(name for name in files if not _hidden(name))
    found = {name for name in folders if not _hidden(name)}
    for name in [*files, *found]:
        found.update(map(str, PurePosixPath(name).parents))
    return Tree(str(path), tuple(files), tuple(sorted(found - {"."})), read)


def _inside(path: Path, name: str) -> str:
    """Return the member's normal name, refusing one that points outside."""
    plain = PurePosixPath(name.replace("\\", "/"))
    if plain.is_absolute() or ".." in plain.parts or ":" in name.split("/")[0]:
        raise ValueError(f"`{path}` holds {name!r}, a path outside it; refused")
    return str(plain)


def _hidden(name: str) -> bool:
    """Tell files that systems leave behind, such as .DS_Store and __MACOSX."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _parent(name: str) -> str:
    return name.rpartition("/")[0]
