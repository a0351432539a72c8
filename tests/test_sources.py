"""Every reader on a tiny fake of every layout, and every refusal."""

import io
import json
import math
import os
import pickle
import re
import tarfile
import zipfile
from collections import OrderedDict, defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from l2f_jax.data.own_images import read_image
from l2f_jax.data.sources import open_source
from l2f_jax.data.sources.class_split import by_ratio, class_to_split, shipped
from l2f_jax.data.sources.decode import UnreadableImage, decode
from l2f_jax.data.sources.miniimagenet import _image_number, _imagenet
from l2f_jax.data.sources.source import Item
from l2f_jax.data.sources.tree import IMAGE_SUFFIXES, open_tree
from l2f_jax.data.sources.unpickle import load, load_entries


def png(level, mode="RGB", side=4):
    file = io.BytesIO()
    Image.new(mode, (side, side), level if mode != "RGB" else (level,) * 3).save(
        file, "PNG"
    )
    return file.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def zipped(folder, file):
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return file


def levels(source):
    """Return class -> (split, first pixel of each image), in the source's order."""
    return {
        found.name: (
            found.split,
            [int(decode(item, 4, source.ink)[0][0, 0, 0]) for item in found.items],
        )
        for found in source.classes
    }


def splits(source):
    return {found.name: found.split for found in source.classes}


# Trees and archives


def test_tree_lists_sorted_and_skips_hidden_files(tmp_path):
    for name in ("b/2.png", "b/1.PNG", "a/x.txt", ".hidden/1.png", "b/._1.png"):
        write(tmp_path / name, b"")
    tree = open_tree(tmp_path)
    assert tree.files == ("a/x.txt", "b/1.PNG", "b/2.png")
    assert tree.images() == {"a": [], "b": ["b/1.PNG", "b/2.png"]}


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".jfif", ".tiff", ".webp", ".gif"])
def test_tree_knows_images_by_every_usual_suffix(tmp_path, suffix):
    for name in (f"a/1{suffix}", "a/1.heic", "readme.md"):
        write(tmp_path / name, b"")
    tree = open_tree(tmp_path)
    assert tree.images() == {"a": [f"a/1{suffix}"]}
    assert tree.others() == ["a/1.heic", "readme.md"]


def test_every_suffix_is_one_that_pillow_reads():
    Image.init()
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in IMAGE_SUFFIXES} <= set(Image.OPEN)


def packed(folder, kind):
    """Put a folder, with its name, into an archive beside it."""
    file = folder.with_name(f"{folder.name}.{kind}")
    if kind == "zip":
        return zipped(folder, file)
    with tarfile.open(file, f"w:{kind[4:]}") as archive:
        archive.add(folder, folder.name)
    return file


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archive_reads_like_its_folder(tmp_path, kind):
    write(tmp_path / "set" / "a" / "1.png", b"one")
    write(tmp_path / "set" / "b" / "2.png", b"two")
    for empty in ("c/d", ".hidden", "__MACOSX/set"):
        (tmp_path / "set" / empty).mkdir(parents=True)
    tree = open_tree(packed(tmp_path / "set", kind)).under("set")
    plain = open_tree(tmp_path / "set")
    assert (tree.files, tree.folders) == (plain.files, plain.folders)
    assert tree.images() == plain.images() and "c/d" in tree.images()
    assert tree.read("b/2.png") == b"two"


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "C:\\evil"])
def test_zip_pointing_outside_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr(name, "")
    with pytest.raises(ValueError, match="a path outside it; refused"):
        open_tree(tmp_path / "set.zip")


def test_zip_with_a_link_is_refused(tmp_path):
    member = zipfile.ZipInfo("link")
    member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(ValueError, match="holds a link, 'link'; refused"):
        open_tree(tmp_path / "set.zip")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_tar_with_a_link_or_device_is_refused(tmp_path, kind):
    member = tarfile.TarInfo("link")
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.addfile(member)
    with pytest.raises(ValueError, match="'link', a link or device; refused"):
        open_tree(tmp_path / "set.tar")


def test_tar_pointing_outside_is_refused(tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("../evil"))
    with pytest.raises(ValueError, match="'../evil', a path outside it"):
        open_tree(tmp_path / "set.tar")


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz"])
def test_web_page_saved_as_archive_is_refused(tmp_path, name):
    write(tmp_path / name, "<html>quota exceeded</html>")
    with pytest.raises(ValueError, match="not a complete archive.*downloaded whole"):
        open_tree(tmp_path / name)


def test_truncated_archive_is_refused(tmp_path):
    write(tmp_path / "set" / "1.png", os.urandom(50_000))
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "set", "set")
    write(tmp_path / "set.tar.gz", (tmp_path / "set.tar.gz").read_bytes()[:20_000])
    with pytest.raises(ValueError, match="not a complete archive"):
        open_tree(tmp_path / "set.tar.gz")


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.zip", "does not exist"), ("set.rar", "neither a folder")],
)
def test_what_is_no_tree_is_refused(tmp_path, name, message):
    write(tmp_path / "set.rar", b"")
    with pytest.raises(ValueError, match=message):
        open_tree(tmp_path / name)


# Pickles


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_of_arrays_and_containers(protocol):
    content = {
        "data": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "scalar": np.int64(3),
        "named": OrderedDict(a=[1, (2.5, "x", None)]),
        "grouped": defaultdict(list, b=[b"raw", {4}]),
    }
    raw = pickle.dumps(content, protocol)
    loaded = load(io.BytesIO(raw), "file")
    np.testing.assert_array_equal(loaded.pop("data"), content.pop("data"))
    assert loaded == content


def test_pickle_of_old_numpy():
    raw = pickle.dumps(np.arange(3), 2).replace(b"numpy._core.", b"numpy.core.")
    np.testing.assert_array_equal(load(io.BytesIO(raw), "file"), np.arange(3))


class Evil:
    """Runs a command when an ordinary unpickler reads it."""

    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickle_that_runs_code_is_refused(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    raw = pickle.dumps({"data": Evil()}, protocol)
    with pytest.raises(ValueError, match="set.pkl: refused.*it asks for posix.system"):
        load(io.BytesIO(raw), "set.pkl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", [b"numpy\nsave", b"builtins\neval", b"numpy.lib.npyio\nload", b"os\nremove"]
)
def test_pickle_naming_another_function_is_refused(name):
    with pytest.raises(ValueError, match="refused to unpickle, it asks for"):
        load(io.BytesIO(b"c" + name + b"\n."), "file")


def test_pickle_with_another_codec_is_refused():
    raw = b"c_codecs\nencode\n(Vx\nVzlib\ntR."
    with pytest.raises(ValueError, match="asks for the codec 'zlib'"):
        load(io.BytesIO(raw), "file")


def test_damaged_pickle_is_refused():
    raw = pickle.dumps({"data": np.zeros(100)})
    with pytest.raises(ValueError, match="set.pkl: "):
        load(io.BytesIO(raw[:-20]), "set.pkl")


@pytest.mark.parametrize(
    ("content", "message"), [([1], "list, not a dictionary"), ({}, "no entry 'data'")]
)
def test_pickle_without_the_entries_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        load_entries(io.BytesIO(pickle.dumps(content)), "file", "data")


# Decoding


def image(content):
    return Item("somewhere/1.png", lambda: content)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK", "LA"])
def test_photographs_become_rgb(mode):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode).save(file, "TIFF")
    pixels, original = decode(image(file.getvalue()), 4, ink=False)
    assert pixels.shape == (4, 4, 3) and pixels.dtype == np.uint8
    assert (pixels == 255).all() and original == (8, 6)


def transparent_png(colour=(0, 0, 200), columns=slice(None)):
    """Coloured columns in the lower half; the rest is transparent, and black."""
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[2:, columns] = *colour, 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def rotated_jpeg():
    """White left of blue, taken with a camera turned so that white is above."""
    pixels = np.full((16, 32, 3), 255, np.uint8)
    pixels[:, 16:] = 0, 0, 200
    file, photo = io.BytesIO(), Image.fromarray(pixels)
    photo.getexif()[0x0112] = 6  # orientation: its left side is the top
    photo.save(file, "JPEG", quality=95, exif=photo.getexif())
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_levels_of_16_bits_keep_the_upper_8(tmp_path, kind):
    levels = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4369  # 0 .. 65535
    Image.fromarray(levels).save(tmp_path / "scan", kind)
    pixels, _ = decode(image((tmp_path / "scan").read_bytes()), 4, ink=False)
    np.testing.assert_array_equal(pixels[..., 0], levels >> 8)
    np.testing.assert_array_equal(pixels, read_image(tmp_path / "scan", (4, 4, 3)))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_levels_of_32_bits_are_refused(tmp_path, dtype):
    Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "scan", "TIFF")
    content = (tmp_path / "scan").read_bytes()
    with pytest.raises(
        UnreadableImage, match="somewhere/1.png: grey levels of 32 bits"
    ):
        decode(image(content), 4, ink=False)
    with pytest.raises(ValueError, match="scan cannot be read: grey levels of 32 bits"):
        read_image(tmp_path / "scan", (4, 4, 3))


@pytest.mark.parametrize("content", [transparent_png(), rotated_jpeg()])
def test_bank_and_own_images_read_a_photograph_as_it_is_seen(tmp_path, content):
    write(tmp_path / "photo", content)
    pixels, (width, height) = decode(image(content), 4, ink=False)
    np.testing.assert_array_equal(pixels, read_image(tmp_path / "photo", (4, 4, 3)))
    np.testing.assert_allclose(pixels[0], [[255] * 3] * 4, atol=3)
    np.testing.assert_allclose(pixels[3], [[0, 0, 200]] * 4, atol=3)
    assert (width, height) in [(4, 4), (16, 32)]


def test_bank_and_own_images_see_a_transparent_drawing_on_white_paper(tmp_path):
    drawing = transparent_png((0, 0, 0), columns=1)
    write(tmp_path / "drawing", drawing)
    ink, _ = decode(image(drawing), 4, ink=True)
    assert np.flatnonzero(ink).tolist() == [9, 13] and ink.max() == 255
    np.testing.assert_array_equal(ink, read_image(tmp_path / "drawing", (4, 4, 1)))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", mode) for mode in ("RGB", "L", "P", "1")]
    + [("JPEG", mode) for mode in ("RGB", "L", "CMYK")],
)
def test_opaque_upright_photographs_are_only_converted(kind, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    found, _ = decode(image(file.getvalue()), 8, ink=False)
    np.testing.assert_array_equal(found, np.asarray(Image.open(file).convert("RGB")))


@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_ink_is_255_on_0_whatever_white_is(white, channels):
    paper = np.full((4, 4, channels), white, np.uint8)
    paper[1, 2] = 0
    pixels, _ = decode(image(paper), 4, ink=True)
    assert pixels.shape == (4, 4, 1)
    assert pixels[1, 2, 0] == 255 and pixels.astype(int).sum() == 255


def test_ink_of_a_one_bit_png():
    file = io.BytesIO()
    Image.fromarray(np.arange(16).reshape(4, 4) != 5).save(file, "PNG")
    pixels, _ = decode(image(file.getvalue()), 4, ink=True)
    assert np.flatnonzero(pixels).tolist() == [5] and pixels.max() == 255


def test_resizing_is_antialiased():
    board = np.indices((16, 16)).sum(0) % 2 * np.uint8(255)
    raw = np.repeat(board.astype(np.uint8)[..., None], 3, -1)
    pixels, _ = decode(image(raw), 4, ink=False)
    # Without antialiasing every pixel would be one of the two levels.
    assert abs(pixels.astype(int) - 127).max() < 20


@pytest.mark.parametrize(
    "content", [b"", b"<html>", png(9, side=64)[:-30], np.zeros((4, 4), np.uint8)]
)
def test_unreadable_image_is_named(content):
    with pytest.raises(UnreadableImage, match=r"^somewhere/1\.png: "):
        decode(image(content), 4, ink=False)


def test_paper_without_light_is_unreadable():
    with pytest.raises(UnreadableImage, match="black all over"):
        decode(image(np.zeros((4, 4, 1), np.uint8)), 4, ink=True)


# Class splits


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("miniimagenet", (64, 16, 20)),
        ("tieredimagenet", (351, 97, 160)),
        ("cifar_fs", (64, 16, 20)),
        ("fc100", (60, 20, 20)),
        ("cub", (100, 50, 50)),
        ("cars", (98, 49, 49)),
        ("dtd_metadataset", (33, 7, 7)),
        ("vgg_flower_metadataset", (71, 15, 16)),
        ("aircraft_boil", (70, 15, 15)),
    ],
)
def test_published_splits_have_their_sizes(name, counts):
    found = list(class_to_split(name).values())
    assert tuple(map(found.count, ("train", "val", "test"))) == counts


def test_fc100_splits_no_superclass():
    parent = shipped("cifar100_hierarchy")["fine_to_coarse"]
    owner = {}
    for name, split in class_to_split("fc100").items():
        assert owner.setdefault(parent[name], split) == split
    superclasses = shipped("fc100")["superclasses"]
    assert owner == {name: part for part in superclasses for name in superclasses[part]}


def test_ratio_split_depends_on_the_seed_alone():
    names = [f"class {number}" for number in range(10)]
    split = by_ratio(names, (0.7, 0.1, 0.2), 0)
    assert split == by_ratio(reversed(names), (0.7, 0.1, 0.2), 0)
    assert split != by_ratio(names, (0.7, 0.1, 0.2), 1)
    counts = [list(split.values()).count(part) for part in ("train", "val", "test")]
    assert counts == [7, 1, 2]


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ((0.5, 0.5, 0.5), "add up to 1"),
        ((1.5, -0.5, 0.0), "at least 0"),
        ((0.9, 0.05, 0.05), "leave none for split 'val'"),
        ((math.nan, 0.5, 0.5), "at least 0"),
    ],
)
def test_ratio_split_refuses(ratios, message):
    with pytest.raises(ValueError, match=message):
        by_ratio("abc", ratios, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": ["a"], "val": ["a"]}', "'a' is in train and in val"),
        ('{"training": ["a"]}', "must map train, val, test"),
        ('{"train": "aa"}', "must map train, val, test"),
        ("[]", "must map train, val, test"),
        ("{", "cannot be read"),
    ],
)
def test_split_file_is_checked(tmp_path, content, message):
    write(tmp_path / "split.json", content)
    with pytest.raises(ValueError, match=message):
        class_to_split(tmp_path / "split.json")


def test_unknown_split_names_the_choices():
    with pytest.raises(ValueError, match="'birds'.*one of .*cub"):
        class_to_split("birds")


def test_unknown_reader_names_the_choices(tmp_path):
    with pytest.raises(ValueError, match="'mnist'.*omniglot, .*tfds:dtd"):
        open_source("mnist", tmp_path)


# Omniglot


@pytest.fixture
def omniglot(tmp_path):
    """Ten background alphabets and one of the evaluation, two characters each."""
    for number in range(11):
        part = "images_background" if number < 10 else "images_evaluation"
        for character in ("character01", "character02"):
            folder = tmp_path / "python" / part / f"A{number:02d}" / character
            for drawer in range(2):
                write(folder / f"{drawer}.png", png(1, "1"))
    return tmp_path


def test_omniglot_tree_holds_out_every_tenth_alphabet(omniglot):
    found = splits(open_source("omniglot", omniglot))
    assert len(found) == 22
    assert {name for name, split in found.items() if split == "val"} == {
        "A09/character01",
        "A09/character02",
    }
    assert found["A10/character01"] == "test" and found["A00/character02"] == "train"


def test_omniglot_zips_read_like_the_tree(omniglot, tmp_path):
    zips = tmp_path / "zips"
    zips.mkdir()
    for part in ("images_background", "images_evaluation"):
        zipped(omniglot / "python" / part, zips / f"{part}.zip")
    source = open_source("omniglot", zips)
    assert source.ink and source.size == 28
    assert levels(source) == levels(open_source("omniglot", omniglot))


def test_omniglot_fractions(omniglot):
    source = open_source("omniglot", omniglot, split="fractions", seed=1)
    found = splits(source)
    counts = [list(found.values()).count(part) for part in ("train", "val", "test")]
    # 22 characters: 22 * 1150 / 1623 = 15.6, 22 * 1200 / 1623 = 16.3.
    assert counts == [15, 1, 6]
    again = open_source("omniglot", omniglot, split="fractions", seed=2)
    assert splits(again) != found


def test_omniglot_without_a_part_is_refused(omniglot):
    part = omniglot / "python" / "images_evaluation"
    part.rename(omniglot / "elsewhere")
    with pytest.raises(
        ValueError, match="both images_background and images_evaluation"
    ):
        open_source("omniglot", omniglot)


def test_omniglot_refuses_an_unknown_split(omniglot):
    with pytest.raises(ValueError, match="'vinyals'.*background, fractions"):
        open_source("omniglot", omniglot, split="vinyals")


# CIFAR


def official_cifar(folder, key=str.encode):
    """Write one train and one test image of every class, of level = label."""
    names = sorted(class_to_split("cifar_fs"))
    for part, extra in (("train", 0), ("test", 100)):
        rows = (
            np.arange(100, dtype=np.uint8)[:, None] + np.zeros(3072, np.uint8) + extra
        )
        content = {"data": rows.astype(np.uint8), "fine_labels": list(range(100))}
        content = {key(name): value for name, value in content.items()}
        write(folder / part, pickle.dumps(content, 2))
    meta = {key("fine_label_names"): [key(name) for name in names]}
    write(folder / "meta", pickle.dumps(meta, 2))
    return names


@pytest.mark.parametrize("name", ["cifar_fs", "fc100"])
def test_official_cifar(tmp_path, name):
    names = official_cifar(tmp_path / "cifar-100-python")
    found = levels(open_source(name, tmp_path))
    assert {key: split for key, (split, _) in found.items()} == class_to_split(name)
    for label, key in enumerate(names):
        assert found[key][1] == [label, label + 100]


def test_official_cifar_archive_and_text_keys(tmp_path):
    official_cifar(tmp_path / "cifar-100-python", key=str)
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar-100-python", "cifar-100-python")
    found = levels(open_source("cifar_fs", tmp_path / "cifar-100-python.tar.gz"))
    assert found["apple"] == ("train", [0, 100])


def test_cifar_is_in_bank_order(tmp_path):
    official_cifar(tmp_path)
    found = splits(open_source("cifar_fs", tmp_path))
    assert list(found.values()) == ["train"] * 64 + ["val"] * 16 + ["test"] * 20
    assert list(found)[:64] == sorted(list(found)[:64])


def respelt(file, **entries):
    """Write a pickled dictionary again with other entries, in text or bytes."""
    content = pickle.loads(file.read_bytes())
    as_bytes = any(isinstance(key, bytes) for key in content)
    for key, value in entries.items():
        content[key.encode() if as_bytes else key] = value
    write(file, pickle.dumps(content))


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("meta", "fine_label_names", 3, "(int) must be a list of text"),
        ("train", "data", None, "(object ()) must be uint8 [n, 3072]"),
        ("train", "fine_labels", None, "(object ()) must be integers [n]"),
        ("test", "fine_labels", [0, 100], "holds 100; must be at least 0 and less"),
        ("test", "fine_labels", [[0], [1, 2]], "is no array"),
    ],
)
def test_broken_entry_of_cifar_is_named(tmp_path, file, key, value, message):
    official_cifar(tmp_path)
    respelt(tmp_path / file, **{key: value})
    with pytest.raises(ValueError, match=f"/{file}: '{key}'.*{re.escape(message)}"):
        open_source("cifar_fs", tmp_path)


def test_cifar_with_too_few_labels_is_refused(tmp_path):
    official_cifar(tmp_path)
    respelt(tmp_path / "train", fine_labels=[0, 1])
    with pytest.raises(ValueError, match="train: has 100 images, 2 labels"):
        open_source("cifar_fs", tmp_path)


def test_channels_of_cifar_are_planes(tmp_path):
    official_cifar(tmp_path)
    content = pickle.loads((tmp_path / "train").read_bytes())
    content[b"data"][0] = np.repeat(np.uint8([1, 2, 3]), 1024)
    write(tmp_path / "train", pickle.dumps(content))
    source = open_source("cifar_fs", tmp_path)
    apple = next(iter(source.classes)).items[0].read()
    assert apple.shape == (32, 32, 3) and (apple == [1, 2, 3]).all()


def bertinetto(folder):
    for split, name, level in (
        ("train", "apple", 1),
        ("val", "otter", 2),
        ("test", "baby", 3),
    ):
        write(folder / "cifar100" / "data" / name / "a.png", png(level))
        write(
            folder / "cifar100" / "splits" / "bertinetto" / f"{split}.txt", f"{name}\n"
        )


def test_cifar_fs_zip_layout(tmp_path):
    bertinetto(tmp_path / "set")
    expected = {"apple": ("train", [1]), "otter": ("val", [2]), "baby": ("test", [3])}
    assert levels(open_source("cifar_fs", tmp_path / "set")) == expected
    archive = zipped(tmp_path / "set" / "cifar100", tmp_path / "set.zip")
    assert levels(open_source("cifar_fs", archive)) == expected


def test_cifar_fs_list_with_a_wrong_split_is_refused(tmp_path):
    bertinetto(tmp_path)
    write(tmp_path / "cifar100" / "splits" / "bertinetto" / "val.txt", "apple\n")
    with pytest.raises(ValueError, match="val.txt: names 'apple', which is a train"):
        open_source("cifar_fs", tmp_path)


def fc100_pickles(folder, numbers):
    for split, labels in numbers.items():
        data = np.zeros((len(labels), 32, 32, 3), np.uint8) + np.uint8(labels).reshape(
            -1, 1, 1, 1
        )
        content = {"data": data, "labels": labels}
        write(folder / f"FC100_{split}.pickle", pickle.dumps(content))


def test_fc100_pickles_with_cifar_labels(tmp_path):
    fc100_pickles(tmp_path, shipped("fc100")["tfds_label_ids"])
    found = levels(open_source("fc100", tmp_path))
    assert {name: split for name, (split, _) in found.items()} == class_to_split(
        "fc100"
    )
    assert found["apple"][1] == [0] and found["worm"][1] == [99]


def test_fc100_pickles_with_their_own_labels(tmp_path):
    fc100_pickles(tmp_path, {"train": [1, 0, 1], "val": [0], "test": [0]})
    found = levels(open_source("fc100", tmp_path))
    assert found["train/001"] == ("train", [1, 1]) and found["val/000"] == ("val", [0])


def test_fc100_pickle_of_another_split_is_refused(tmp_path):
    ids = shipped("fc100")["tfds_label_ids"]
    swapped = {"train": ids["train"], "val": ids["test"], "test": ids["val"]}
    fc100_pickles(tmp_path, swapped)
    with pytest.raises(ValueError, match="FC100_val.pickle: holds the test classes"):
        levels(open_source("fc100", tmp_path))


def test_missing_fc100_pickle_is_named(tmp_path):
    fc100_pickles(tmp_path, {"train": [0]})
    with pytest.raises(ValueError, match="FC100_val.pickle: missing"):
        levels(open_source("fc100", tmp_path))


@pytest.mark.parametrize("labels", [None, [-1], [0.5], [0, 1]])
def test_fc100_labels_that_fit_no_image_are_refused(tmp_path, labels):
    fc100_pickles(tmp_path, {"train": [0]})
    respelt(tmp_path / "FC100_train.pickle", labels=labels)
    with pytest.raises(ValueError, match="FC100_train.pickle: "):
        levels(open_source("fc100", tmp_path))


@pytest.mark.parametrize("name", ["cifar_fs", "fc100"])
def test_folder_without_cifar_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"no known layout of {name}"):
        open_source(name, tmp_path)


# mini-ImageNet

WNIDS = {"train": "n01532829", "val": "n01855672", "test": "n01930112"}
MINI = {
    "n01532829": ("train", [1, 2]),
    "n01855672": ("val", [1, 2]),
    "n01930112": ("test", [1, 2]),
}


def mini_folders(folder):
    for split, wnid in WNIDS.items():
        for level in (1, 2):
            write(folder / "mini" / split / wnid / f"{level}.png", png(level))


def mini_pickles(folder):
    for split, wnid in WNIDS.items():
        levels = np.uint8([1, 0, 2]).reshape(3, 1, 1, 1)
        images = levels + np.zeros((3, 84, 84, 3), np.uint8)
        content = {"image_data": images, "class_dict": {wnid: [0, 2]}}
        write(folder / f"mini-imagenet-cache-{split}.pkl", pickle.dumps(content))


def mini_lists(folder):
    for split, wnid in WNIDS.items():
        rows = [f"{wnid}0000000{level}.png,{wnid}" for level in (1, 2)]
        write(folder / f"{split}.csv", "\n".join(["filename,label", *rows]))
        for level in (1, 2):
            write(folder / "images" / f"{wnid}0000000{level}.png", png(level))


@pytest.mark.parametrize("layout", [mini_folders, mini_pickles, mini_lists])
def test_mini_imagenet_layouts(tmp_path, layout):
    layout(tmp_path)
    source = open_source("miniimagenet", tmp_path)
    assert levels(source) == MINI
    assert source.expected.classes == {"train": 64, "val": 16, "test": 20}
    assert source.expected.images == 600


def test_mini_imagenet_from_imagenet_picks_by_rank(tmp_path):
    wnid = WNIDS["train"]
    ranks = shipped("miniimagenet_images")["images"][wnid]
    # File number 3 * rank, so that rank and number differ; and "10" sorts before "9".
    for rank in range(1, max(ranks) + 1):
        write(tmp_path / "train" / wnid / f"{wnid}_{3 * rank}.JPEG", b"")
    found = next(_imagenet(open_tree(tmp_path / "train")))
    numbers = [_image_number(item.where) for item in found.items]
    assert (found.name, found.split) == (wnid, "train")
    assert numbers == [3 * rank for rank in ranks] and len(numbers) == 600


def test_imagenet_with_too_few_images_is_refused(tmp_path):
    write(tmp_path / WNIDS["train"] / "n01532829_1.JPEG", b"")
    with pytest.raises(ValueError, match="n01532829: holds 1 images, but image"):
        levels(open_source("miniimagenet", tmp_path))


def test_imagenet_file_of_another_name_is_refused():
    with pytest.raises(ValueError, match="not named like an image of ImageNet"):
        _image_number("n01532829/photo.jpeg")


def test_mini_imagenet_class_in_the_wrong_split_is_refused(tmp_path):
    mini_folders(tmp_path)
    mini = tmp_path / "mini"
    (mini / "train" / "n01532829").rename(mini / "test" / "n01532829")
    write(mini / "train" / "n01558993" / "1.png", png(1))
    with pytest.raises(ValueError, match="wrong split: class n01532829 is in test"):
        levels(open_source("miniimagenet", tmp_path))


def test_missing_list_of_mini_imagenet_is_named(tmp_path):
    mini_lists(tmp_path)
    (tmp_path / "val.csv").unlink()
    with pytest.raises(ValueError, match="val.csv: missing"):
        levels(open_source("miniimagenet", tmp_path))


def test_foreign_list_is_refused(tmp_path):
    write(tmp_path / "train.csv", "image,class\n1.png,a\n")
    with pytest.raises(ValueError, match="columns are not filename,label"):
        levels(open_source("miniimagenet", tmp_path))


def test_image_missing_beside_a_list_is_unreadable(tmp_path):
    mini_lists(tmp_path)
    (tmp_path / "images" / "n0153282900000001.png").unlink()
    with pytest.raises(UnreadableImage, match="n0153282900000001.png: .*No such file"):
        levels(open_source("miniimagenet", tmp_path))


def test_pickle_of_mini_imagenet_that_runs_code_is_refused(tmp_path):
    mini_pickles(tmp_path)
    write(tmp_path / "mini-imagenet-cache-train.pkl", pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="cache-train.pkl: refused to unpickle"):
        levels(open_source("miniimagenet", tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_data", [1, 2], "(int64 (2,)) must be uint8 [n, ?, ?, 3]"),
        ("class_dict", ["n01532829"], "(list) must be a dictionary"),
        ("class_dict", {"n01532829": None}, "of n01532829 (object ()) must be integ"),
        ("class_dict", {"n01532829": [3]}, "of n01532829: holds 3; must be at least 0"),
    ],
)
def test_broken_entry_of_mini_imagenet_is_named(tmp_path, key, value, message):
    mini_pickles(tmp_path)
    respelt(tmp_path / "mini-imagenet-cache-train.pkl", **{key: value})
    with pytest.raises(
        ValueError, match=f"cache-train.pkl: '{key}' ?{re.escape(message)}"
    ):
        levels(open_source("miniimagenet", tmp_path))


def test_folder_without_mini_imagenet_is_refused(tmp_path):
    write(tmp_path / "cats" / "1.png", png(1))
    with pytest.raises(ValueError, match="no known layout of mini-ImageNet"):
        open_source("miniimagenet", tmp_path)


# tieredImageNet


def tiered_pickles(folder):
    for split in ("train", "val", "test"):
        images = [np.frombuffer(png(level), np.uint8)[:, None] for level in (1, 2, 3)]
        labels = {
            "label_specific": np.array([1, 0, 1]),
            "label_specific_str": [f"{split} b", f"{split} a"],
        }
        write(folder / f"{split}_images_png.pkl", pickle.dumps(images))
        write(folder / f"{split}_labels.pkl", pickle.dumps(labels))


def test_tiered_pickles(tmp_path):
    tiered_pickles(tmp_path)
    found = levels(open_source("tieredimagenet", tmp_path))
    assert list(found)[:3] == ["train a", "train b", "val a"]
    assert found["train a"] == ("train", [1, 3]) and found["test b"] == ("test", [2])


def test_tiered_classes_of_one_name_are_told_apart(tmp_path):
    tiered_pickles(tmp_path)
    labels = {"label_specific": [0, 1, 1], "label_specific_str": ["crane", "crane"]}
    write(tmp_path / "train_labels.pkl", pickle.dumps(labels))
    found = levels(open_source("tieredimagenet", tmp_path))
    assert list(found)[:2] == ["crane (0)", "crane (1)"]


def test_tiered_pickles_of_unequal_length_are_refused(tmp_path):
    tiered_pickles(tmp_path)
    write(tmp_path / "train_images_png.pkl", pickle.dumps([]))
    with pytest.raises(ValueError, match="no list of 3 images"):
        levels(open_source("tieredimagenet", tmp_path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("label_specific", [0, 1, 2]),
        ("label_specific", None),
        ("label_specific_str", "ab"),
        ("label_specific_str", [1, 2]),
    ],
)
def test_broken_labels_of_tiered_imagenet_are_named(tmp_path, key, value):
    tiered_pickles(tmp_path)
    respelt(tmp_path / "val_labels.pkl", **{key: value})
    with pytest.raises(ValueError, match=f"val_labels.pkl: '{key}'.* must be"):
        levels(open_source("tieredimagenet", tmp_path))


def test_tiered_folders(tmp_path):
    names = {part: min(shipped("tieredimagenet")["splits"][part]) for part in WNIDS}
    for split, wnid in names.items():
        write(tmp_path / "split" / split / wnid / "1.png", png(1))
        write(tmp_path / "imagenet" / wnid / "1.png", png(1))
    write(tmp_path / "imagenet" / "n00000000" / "1.png", png(1))
    expected = {wnid: (split, [1]) for split, wnid in names.items()}
    assert levels(open_source("tieredimagenet", tmp_path / "split")) == expected
    assert levels(open_source("tieredimagenet", tmp_path / "imagenet")) == expected


def test_tiered_of_all_of_imagenet_asks_for_its_training_images(tmp_path):
    wnid = min(shipped("tieredimagenet")["splits"]["test"])
    for part in ("train", "val"):
        write(tmp_path / "imagenet" / part / wnid / "1.png", png(1))
    message = f"'{wnid}' .* several folders: train/{wnid}, val/{wnid}; give the folder"
    with pytest.raises(ValueError, match=message):
        open_source("tieredimagenet", tmp_path / "imagenet")
    source = open_source("tieredimagenet", tmp_path / "imagenet" / "train")
    assert splits(source) == {wnid: "test"}


# Class folders


def photos(folder, names="abcdefghij"):
    for level, name in enumerate(names):
        write(folder / name / "1.png", png(level))
        write(folder / name / "notes.txt", "")
    return folder


def test_pre_split_folders(tmp_path):
    for split, name in (("Train", "a"), ("validation", "b"), ("test", "c")):
        photos(tmp_path / split, name)
    source = open_source("folders", tmp_path)
    assert splits(source) == {"a": "train", "b": "val", "c": "test"}
    assert source.notes == (
        "files that are no images by their names: 3 left out, such as "
        "Train/a/notes.txt",
    )


def test_unsplit_folders_are_cut_by_ratio_and_seed(tmp_path):
    photos(tmp_path)
    found = splits(open_source("folders", tmp_path, seed=3))
    assert found == by_ratio("abcdefghij", (0.64, 0.16, 0.2), 3)
    other = splits(open_source("folders", tmp_path, split="0.5,0.2,0.3"))
    assert list(other.values()) == ["train"] * 5 + ["val"] * 2 + ["test"] * 3


def test_split_file_is_respected(tmp_path):
    photos(tmp_path / "set")
    split = {"train": ["j"], "val": ["b"], "test": ["a", "missing"]}
    write(tmp_path / "split.json", json.dumps(split))
    source = open_source(
        "folders", tmp_path / "set", split=str(tmp_path / "split.json")
    )
    assert splits(source) == {"j": "train", "b": "val", "a": "test"}
    assert source.notes == (
        "1 classes of the split are not there: missing",
        "7 class folders that the split does not name: left out",
        "files that are no images by their names: 10 left out, such as a/notes.txt",
    )
    assert source.expected.classes == {"train": 1, "val": 1, "test": 2}


def test_a_list_may_name_one_of_two_classes_by_its_path(tmp_path):
    photos(tmp_path / "set" / "x", "ab")
    photos(tmp_path / "set" / "y", "b")
    split = {"train": ["a"], "val": ["x/b"], "test": ["y/b"]}
    write(tmp_path / "split.json", json.dumps(split))
    read = partial(open_source, "folders", tmp_path / "set")
    assert splits(read(split=str(tmp_path / "split.json"))) == {
        "a": "train",
        "x/b": "val",
        "y/b": "test",
    }
    write(tmp_path / "split.json", json.dumps(split | {"test": ["b"]}))
    with pytest.raises(ValueError, match="class 'b' .* in several folders: x/b, y/b"):
        read(split=str(tmp_path / "split.json"))


def test_published_split_of_class_folders(tmp_path):
    write(tmp_path / "CUB" / "images" / "001.Black_footed_Albatross" / "1.png", png(1))
    source = open_source("folders", tmp_path, split="cub")
    assert splits(source) == {"001.Black_footed_Albatross": "train"}
    assert source.expected.classes == {"train": 100, "val": 50, "test": 50}


def test_nested_class_folders(tmp_path):
    for name in ("latin/a", "latin/b", "greek/a"):
        write(tmp_path / name / "1.png", png(1))
    found = splits(open_source("folders", tmp_path, split="0.34,0.33,0.33"))
    assert sorted(found) == ["greek/a", "latin/a", "latin/b"]


def test_zip_of_class_folders(tmp_path):
    archive = zipped(photos(tmp_path / "photos"), tmp_path / "photos.zip")
    found = levels(open_source("folders", archive))
    assert found == levels(open_source("folders", tmp_path / "photos"))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_empty_class_folder_is_a_class_without_images(tmp_path, kind):
    place = photos(tmp_path / "set")
    (place / "k").mkdir()
    source = open_source("folders", place if kind == "folder" else packed(place, kind))
    found = {name: len(items) for name, _, items in source.classes}
    assert found["k"] == 0 and found["a"] == 1


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        open_source("folders", tmp_path)


def test_images_outside_class_folders_are_refused(tmp_path):
    photos(tmp_path)
    write(tmp_path / "loose.png", png(1))
    with pytest.raises(ValueError, match="outside class folders: loose.png"):
        open_source("folders", tmp_path)


def test_class_in_two_splits_is_refused(tmp_path):
    for split in ("train", "test"):
        photos(tmp_path / split, "ab")
    with pytest.raises(ValueError, match="'a' is in train and in test"):
        open_source("folders", tmp_path)


def test_folder_beside_the_splits_is_refused(tmp_path):
    for split in ("train", "testing"):
        photos(tmp_path / split, split[0])
    with pytest.raises(ValueError, match="beside them testing"):
        open_source("folders", tmp_path)


@pytest.mark.parametrize("split", ["0.5,0.5", "a,b,c"])
def test_malformed_ratios_are_refused(tmp_path, split):
    photos(tmp_path)
    with pytest.raises(ValueError, match="must be three ratios"):
        open_source("folders", tmp_path, split=split)


# TFDS


def mocked(examples):
    """Let TFDS deliver examples of the asked split instead of prepared data."""

    def as_data_source(self, *, split, decoders):
        assert set(decoders) == {"image"}
        return examples[split]

    return tfds.testing.mock_data(as_data_source_fn=as_data_source)


def test_tfds_merges_its_splits_and_finds_the_names(tmp_path):
    def examples(level):
        return [{"image": png(level), "label": np.int64(label)} for label in (0, 99, 3)]

    with mocked({"train": examples(1), "test": examples(2)}):
        found = levels(open_source("tfds:cifar100", tmp_path))
    assert found["apple"] == ("train", [1, 2]) and found["worm"] == ("test", [1, 2])
    with mocked({"train": examples(1), "test": examples(2)}):
        fc100 = splits(open_source("tfds:cifar100", tmp_path, split="fc100"))
    assert fc100["bear"] == "val"


def test_tfds_matches_numbered_names(tmp_path):
    one = [{"image": png(1), "label": np.int64(0)}]  # "pink primrose"
    with mocked({"train": one, "test": one, "validation": []}):
        found = levels(open_source("tfds:oxford_flowers102", tmp_path))
    assert found == {"001.pink primrose": ("train", [1, 1])}


def test_tfds_cuts_any_set_of_labelled_images_by_ratio(tmp_path, monkeypatch):
    monkeypatch.setattr(
        tfds.core.DatasetInfo, "splits", {"test": 0, "extra": 0, "train": 0}
    )
    labels = [0, 3, 9, -1]  # of the test images one is not told
    examples = [{"image": png(1), "label": np.int64(label)} for label in labels]
    with mocked({"train": examples[:3], "test": examples}):
        source = open_source("tfds:mnist", tmp_path, split="0.4,0.3,0.3", seed=1)
    expected = by_ratio("039", (0.4, 0.3, 0.3), 1)
    assert sorted(expected.values()) == ["test", "train", "val"]
    assert levels(source) == {name: (expected[name], [1, 1]) for name in "039"}
    assert source.provenance["split"] == "0.4,0.3,0.3" and source.expected is None
    assert source.provenance["parts"] == "train, test"  # as extra may overlap
    assert source.size == 28
    with mocked({"train": examples[:3], "test": []}):
        other = splits(open_source("tfds:cifar100", tmp_path, split="0.4,0.3,0.3"))
    assert other.keys() == {"apple", "bear", "bottle"}


def test_tfds_numbers_that_a_split_names_are_those_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.DatasetInfo, "splits", {"train": 0})
    names = [str(i) for i in range(47)]
    content = {"train": names[:30], "val": names[30:40], "test": names[40:]}
    write(tmp_path / "split.json", json.dumps(content).encode())
    examples = [{"image": png(i), "label": np.int64(i)} for i in range(47)]
    with mocked({"train": examples}):
        found = levels(
            open_source(
                "tfds:emnist/balanced", tmp_path, split=str(tmp_path / "split.json")
            )
        )
    assert {name: level for name, (_, level) in found.items()} == {
        name: [int(name)] for name in names
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing_like_this", "cannot be read: Dataset nothing_like_this not found"),
        ("div2k", "must have image: Image and label: ClassLabel; it has lr: Image"),
        ("lfw", "ClassLabel; it has .*label: Text"),
        ("mnist:9.9.9", "cannot be read: .*9.9.9"),
        ("mnist", r"no mnist prepared.*tfds build mnist"),
    ],
)
def test_tfds_sets_that_cannot_be_read_are_refused(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        open_source(f"tfds:{name}", tmp_path)


def test_tfds_cars_takes_the_training_images_only(tmp_path):
    one = [{"image": png(1), "label": np.int64(0)}]
    with mocked({"train": one}):
        found = splits(open_source("tfds:cars196", tmp_path))
    assert found == {"AM General Hummer SUV 2000": "train"}


def test_tfds_omniglot_is_named_like_the_authors_tree(tmp_path):
    def example(alphabet, white):
        ink = np.full((4, 4, 3), white, np.uint8)
        return {
            "image": ink,
            "alphabet": np.int64(alphabet),
            "alphabet_char_id": np.int64(0),
        }

    parts = {"train": [example(0, 1), example(0, 255)], "test": [example(1, 1)]}
    with mocked(parts):
        source = open_source("tfds:omniglot", tmp_path)
    assert levels(source) == {
        "0/character01": ("train", [0, 0]),
        "1/character01": ("test", [0]),
    }


def test_unprepared_tfds_data_names_the_extra(tmp_path):
    with pytest.raises(
        ValueError, match=r"no dtd prepared.*l2f_jax\[tfds\].*tfds build"
    ):
        open_source("tfds:dtd", tmp_path)


def test_shipped_splits_are_all_valid_json():
    folder = Path(open_source.__code__.co_filename).parents[1] / "splits"
    assert all(json.loads(file.read_text()) for file in folder.glob("*.json"))
