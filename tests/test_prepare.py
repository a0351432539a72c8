import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import prepare
from l2f_jax.data.bank import load_bank
from l2f_jax.data.pack import Listed, check_counts
from l2f_jax.data.sources.source import Expected


def photos(folder, classes="abcdefghij", count=3, side=6):
    for level, name in enumerate(classes):
        for number in range(count):
            file = folder / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side), (10 * level, number, 200)).save(file)
    return folder


def run(*arguments):
    return prepare.main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    """Run what must be refused; return the message."""
    assert run(*arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("prepare.py: ") and "Traceback" not in message
    return message


def test_packs_class_folders(tmp_path, capsys):
    photos(tmp_path / "photos")
    assert run("folders", tmp_path / "photos", tmp_path / "bank", "--size", "4") == 0
    bank = load_bank(tmp_path / "bank")
    assert bank.images.shape == (30, 4, 4, 3) and set(bank.counts) == {3}
    for row, name in enumerate(bank.classes):
        pixels = bank.images[3 * row : 3 * row + 3, 0, 0].tolist()
        level = 10 * "abcdefghij".index(name)
        assert pixels == [[level, 0, 200], [level, 1, 200], [level, 2, 200]]
    assert "10 classes (6 train, 2 val, 2 test), 30 images" in capsys.readouterr().out


def test_provenance_is_recorded(tmp_path):
    photos(tmp_path / "photos")
    run("folders", tmp_path / "photos", tmp_path / "bank", "--size", "4", "--seed", "5")
    provenance = load_bank(tmp_path / "bank").provenance
    assert provenance["source"] == "class folders" and provenance["seed"] == 5
    assert provenance["resize"] == "bicubic, antialiased, to 4 x 4"
    assert provenance["original_sizes"] == "6 x 6"
    assert {"numpy", "pillow"} <= set(provenance["versions"])


def test_written_split_reproduces_the_bank(tmp_path):
    photos(tmp_path / "photos")
    run("folders", tmp_path / "photos", tmp_path / "one", "--seed", "5")
    split = tmp_path / "one" / "split.json"
    run("folders", tmp_path / "photos", tmp_path / "two", "--split", split)
    one, two = load_bank(tmp_path / "one"), load_bank(tmp_path / "two")
    assert (one.classes, one.splits) == (two.classes, two.splits)
    np.testing.assert_array_equal(one.images, two.images)


def test_all_unreadable_images_are_listed(tmp_path, capsys):
    folder = photos(tmp_path / "photos", side=64)
    whole = (folder / "b" / "1.png").read_bytes()
    (folder / "b" / "1.png").write_bytes(whole[:-30])
    (folder / "d" / "2.png").write_bytes(b"")
    (folder / "g" / "0.png").write_bytes(b"<html>")
    message = refused(capsys, "folders", folder, tmp_path / "bank")
    assert message.count("\n") == 4
    assert all(name in message for name in ("b/1.png", "d/2.png", "g/0.png"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["photos"]


def test_class_with_too_few_images_is_named(tmp_path, capsys):
    folder = photos(tmp_path / "photos")
    (folder / "c" / "0.png").unlink()
    (folder / "empty").mkdir()
    message = refused(capsys, "folders", folder, tmp_path / "bank", "--min-images", "3")
    assert "class 'c' has 2 images, fewer than --min-images 3" in message
    assert "class 'empty' has 0 images" in message


def test_wrong_count_of_a_published_set_is_refused(tmp_path, capsys):
    for part, alphabet in (("background", "A"), ("evaluation", "B")):
        photos(tmp_path / "set" / f"images_{part}" / alphabet, ["character01"], count=2)
    message = refused(capsys, "omniglot", tmp_path / "set", tmp_path / "bank")
    assert "split 'train' has 1 classes, not 828" in message
    assert "class 'A/character01' has 2 images, not 20" in message
    assert "--allow-partial" in message
    assert not (tmp_path / "bank").exists()


def test_partial_set_is_packed_when_allowed(tmp_path):
    for part, alphabet in (("background", "A"), ("evaluation", "B")):
        photos(tmp_path / "set" / f"images_{part}" / alphabet, ["character01"], count=2)
    assert run("omniglot", tmp_path / "set", tmp_path / "bank", "--allow-partial") == 0
    bank = load_bank(tmp_path / "bank")
    assert bank.images.shape == (4, 28, 28, 1) and bank.splits == ("train", "test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist", "photos", "bank"), "`source` ('mnist') must be one of omniglot"),
        (("folders", "nowhere", "bank"), "does not exist"),
        (("folders", "photos", "photos"), "exists already"),
        (("folders", "photos", "photos", "--overwrite"), "is not a bank"),
        (("folders", "photos", "bank", "--split", "birds"), "'birds'"),
        (("folders", "photos", "bank", "--size", "0"), "`size` (0)"),
        (("folders", "photos", "bank", "--min-images", "0"), "`min_images` (0)"),
        (("cifar_fs", "photos", "bank"), "no known layout of cifar_fs"),
        (("miniimagenet", "photos", "bank"), "no known layout of mini-ImageNet"),
        (("omniglot", "photos", "bank"), "must hold both images_background"),
        (("tieredimagenet", "photos", "bank"), "no class was found"),
        (("folders", "photos"), "arguments are required: output"),
        (("folders", "photos", "bank", "--size", "big"), "invalid int value: 'big'"),
    ],
)
def test_refusals_are_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    photos(Path("photos"))
    assert message in refused(capsys, *arguments)
    assert os.listdir() == ["photos"]


def test_missing_split_is_refused(tmp_path, capsys):
    photos(tmp_path / "photos" / "train")
    message = refused(capsys, "folders", tmp_path / "photos", tmp_path / "bank")
    assert "split 'val' has no class" in message and "split 'test'" in message


def test_overwrite_replaces_a_bank(tmp_path):
    photos(tmp_path / "photos")
    assert run("folders", tmp_path / "photos", tmp_path / "bank", "--size", "4") == 0
    again = ("folders", tmp_path / "photos", tmp_path / "bank", "--overwrite")
    assert run(*again, "--size", "5") == 0
    assert load_bank(tmp_path / "bank").images.shape[1] == 5


def test_counts_of_the_published_sets_are_spelt_out():
    classes = [Listed(f"c{number}", "train", 3) for number in range(30)]
    expected = Expected({"train": 30}, 600)
    with pytest.raises(ValueError, match="'c0' has 3 images, not 600") as error:
        check_counts(classes, expected=expected, splits=(), min_images=2)
    assert "and 20 more" in str(error.value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_that_python_drops_is_noticed(tmp_path, monkeypatch, number):
    class Finalised:
        def __del__(self):
            os.kill(os.getpid(), number)
            for _ in range(10_000):  # in one of these it is raised
                pass

    packed = []

    def pack(source, output, *, advance, **options):
        for name in "abc":
            if name == "b":
                Finalised()
            packed.append(name)
            advance(name)

    photos(tmp_path / "photos")
    monkeypatch.setattr(prepare, "pack_bank", pack)
    before = signal.getsignal(number)
    assert run("folders", tmp_path / "photos", tmp_path / "bank") == 130
    assert packed == ["a", "b"] and signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_run_leaves_no_bank(tmp_path, number):
    large = photos(tmp_path, "x", count=1, side=2000) / "x" / "0.png"
    for row in range(1000):  # many links to one large image keep the run busy
        folder = tmp_path / "photos" / f"{row // 50:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        os.link(large, folder / f"{row}.png")
    script = Path(prepare.__file__)
    # A shell that runs the tests in the background has it ignored, children inherit it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, script, "folders", tmp_path / "photos", tmp_path / "bank"],
        env=os.environ | {"PYTHONPATH": str(script.parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    signal.signal(signal.SIGINT, before)
    while not list(tmp_path.glob(".bank.partial-*")):
        assert process.poll() is None, "ended before it could be interrupted"
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == (-number if number == signal.SIGKILL else 130)
    left = {entry.name for entry in tmp_path.iterdir()} - {"x", "photos"}
    assert "bank" not in left
    assert not left or number == signal.SIGKILL
