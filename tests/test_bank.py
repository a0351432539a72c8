import json
import os
from pathlib import Path

import numpy as np
import pytest

from l2f_jax.data import bank as bank_module
from l2f_jax.data.bank import ImageBank, embedded_icons, load_bank
from l2f_jax.data.writer import ABANDONED, write_bank

ICONS = Path(bank_module.__file__).parent / "icons" / "icons_28.npz"


def grey(level, count, side=4):
    return np.full((count, side, side, 1), level, np.uint8)


def write_small(path, **options):
    with write_bank(path, {"source": "test"}, **options) as add:
        add("a", "train", grey(0, 2))
        add("b", "train", grey(255, 2))
        add("c", "test", grey(51, 3))


def test_written_bank_loads_memory_mapped(tmp_path):
    write_small(tmp_path / "bank")
    bank = load_bank(tmp_path / "bank")
    assert isinstance(bank.images, np.memmap) and not bank.images.flags.writeable
    assert bank.images.shape == (7, 4, 4, 1)
    assert bank.images[:, 0, 0, 0].tolist() == [0, 0, 255, 255, 51, 51, 51]
    assert bank.classes == ("a", "b", "c")
    assert bank.counts == (2, 2, 3)
    assert bank.splits == ("train", "train", "test")


def test_statistics_are_those_of_the_train_split(tmp_path):
    write_small(tmp_path / "bank")
    provenance = load_bank(tmp_path / "bank").provenance
    # Half of the training pixels are 0, half 1: mean 0.5, standard deviation 0.5.
    assert provenance["mean"] == [0.5] and provenance["std"] == [0.5]
    assert provenance["source"] == "test" and "numpy" in provenance["versions"]


def test_statistics_are_per_channel(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    with write_bank(tmp_path / "bank", {}) as add:
        add("a", "val", images)
    provenance = load_bank(tmp_path / "bank").provenance
    np.testing.assert_allclose(provenance["mean"], (images / 255).mean((0, 1, 2)))
    np.testing.assert_allclose(provenance["std"], (images / 255).std((0, 1, 2)))


def test_table_of_a_split(tmp_path):
    write_small(tmp_path / "bank")
    bank = load_bank(tmp_path / "bank")
    table = bank.table("train")
    assert table.start.tolist() == [0, 2] and table.count.tolist() == [2, 2]
    assert (table.split, table.largest) == ("train", 2)
    assert bank.table("test").start.tolist() == [4]


def test_unknown_split_names_those_there(tmp_path):
    write_small(tmp_path / "bank")
    with pytest.raises(ValueError, match="'val'.*one of train, test"):
        load_bank(tmp_path / "bank").table("val")


def test_only_keeps_the_images_of_the_split():
    # Classes of the splits alternate, so the split is no slice of the bank.
    images = np.concatenate([grey(level, 2) for level in (1, 2, 3)])
    bank = ImageBank(images, ("a", "b", "c"), (2,) * 3, ("train", "val", "train"), {})
    part = bank.only("train")
    assert part.images[:, 0, 0, 0].tolist() == [1, 1, 3, 3]
    assert part.classes == ("a", "c")
    assert bank.only("val").images.base is images  # neighbours are a view


def test_split_json_is_written(tmp_path):
    write_small(tmp_path / "bank")
    split = json.loads((tmp_path / "bank" / "split.json").read_text())
    assert split == {"train": ["a", "b"], "val": [], "test": ["c"]}


def test_exception_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), write_bank(tmp_path / "bank", {}) as add:
        add("a", "train", grey(0, 2))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_existing_bank_is_kept_unless_asked(tmp_path):
    write_small(tmp_path / "bank")
    with pytest.raises(ValueError, match="exists already"):
        write_small(tmp_path / "bank")
    with write_bank(tmp_path / "bank", {}, overwrite=True) as add:
        add("new", "train", grey(9, 1))
    assert load_bank(tmp_path / "bank").classes == ("new",)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bank"]


def test_failed_overwrite_keeps_the_old_bank(tmp_path):
    write_small(tmp_path / "bank")
    with (
        pytest.raises(RuntimeError),
        write_bank(tmp_path / "bank", {}, overwrite=True) as add,
    ):
        add("new", "train", grey(9, 1))
        raise RuntimeError
    assert load_bank(tmp_path / "bank").classes == ("a", "b", "c")


def test_overwrite_spares_a_folder_that_is_no_bank(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="not a bank"):
        write_small(tmp_path / "photos", overwrite=True)


def test_abandoned_partial_bank_is_removed_later(tmp_path):
    old, running = (tmp_path / f".bank.partial-{name}" for name in ("old", "running"))
    for folder in (old, running):
        folder.mkdir()
    long_ago = old.stat().st_mtime - ABANDONED - 60
    os.utime(old, (long_ago, long_ago))
    write_small(tmp_path / "bank")
    assert not old.exists() and running.exists()


@pytest.mark.parametrize(
    ("name", "split", "images", "message"),
    [
        ("a", "train", grey(0, 2), "given twice"),
        ("b", "training", grey(0, 2), "'training'.*train, val, test"),
        ("b", "train", grey(0, 2, side=5), r"\(5, 5, 1\)"),
        ("b", "train", grey(0, 0), "not uint8"),
        ("b", "train", grey(0, 2).astype(np.float32), "not uint8"),
    ],
)
def test_writer_refuses(tmp_path, name, split, images, message):
    with (
        pytest.raises(ValueError, match=message),
        write_bank(tmp_path / "bank", {}) as add,
    ):
        add("a", "train", grey(0, 2))
        add(name, split, images)


def test_writer_refuses_an_empty_bank(tmp_path):
    with pytest.raises(ValueError, match="no class"), write_bank(tmp_path / "b", {}):
        pass


def truncate(folder):
    content = (folder / "images.npy").read_bytes()
    (folder / "images.npy").write_bytes(content[:-1])


def edit(**entries):
    def apply(folder):
        file = folder / "bank.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        edit(format="other"),
        edit(version=99),
        edit(counts=[2, 2, 4]),
        edit(counts=[2, 5]),
        edit(splits=["train", "train", "other"]),
        edit(classes=None),
        lambda folder: (folder / "bank.json").write_text("{"),
        lambda folder: (folder / "bank.json").write_text("[]"),
        lambda folder: (folder / "bank.json").unlink(),
        lambda folder: (folder / "images.npy").unlink(),
        lambda folder: (folder / "images.npy").write_bytes(b""),
        lambda folder: np.save(folder / "images.npy", np.zeros((7, 4, 4, 1))),
    ],
)
def test_broken_bank_is_one_clear_error(tmp_path, damage):
    write_small(tmp_path / "bank")
    damage(tmp_path / "bank")
    with pytest.raises(ValueError, match="bank` is not a complete image bank"):
        load_bank(tmp_path / "bank")


def test_missing_bank_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="not a complete image bank.*prepare.py"):
        load_bank(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("split", "counts"), [("semantic", (227, 51, 59)), ("random", (218, 51, 68))]
)
def test_embedded_icons(split, counts):
    bank = embedded_icons(split)
    assert bank.images.shape == (6740, 28, 28, 1) and bank.images.dtype == np.uint8
    assert (bank.images.min(), bank.images.max()) == (0, 255)
    assert tuple(map(bank.splits.count, ("train", "val", "test"))) == counts
    assert set(bank.counts) == {20}


def test_embedded_icons_are_grouped_by_class():
    bank = embedded_icons()
    with np.load(ICONS) as packed:
        row = packed["class_names"].tolist().index("trash")
        drawings = packed["images"][packed["label"] == row]
    first = bank.classes.index("trash") * 20  # 20 drawings of every name
    np.testing.assert_array_equal(bank.images[first : first + 20, ..., 0], drawings)


def test_embedded_icons_refuses_an_unknown_split():
    with pytest.raises(ValueError, match="'easy'.*semantic, random"):
        embedded_icons("easy")
