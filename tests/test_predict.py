"""Labelling a user's own images with a trained run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs.regression import sinusoid
from experiments import predict
from experiments.train import train
from l2f_jax.checkpoint import Checkpoints
from l2f_jax.data.bank import embedded_icons
from l2f_jax.data.episodes import EpisodeSpec, episode_keys, sample_indices
from l2f_jax.data.own_images import find_images, read_classes, read_image
from l2f_jax.problems import build
from l2f_jax.problems.predictor import load_predictor
from tests import tiny

pytestmark = pytest.mark.mixed_dtypes  # Adam
ROOT = Path(__file__).parent.parent
SHAPE = (28, 28, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    config = tiny.get_config()
    config.training.iterations = 6
    assert train(config, run)
    return run


@pytest.fixture(scope="module")
def predictor(run):
    return load_predictor(run)


def drawings(classes: int, number: int) -> np.ndarray:
    """Return icons of test classes, [classes * number, 28, 28, 1]."""
    bank = embedded_icons().only("test")
    images = bank.images.reshape(-1, 20, *SHAPE)  # every icon has 20 drawings
    return images[:classes, :number].reshape(-1, *SHAPE)


def save(image: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze()).save(path)
    return path


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Three classes of one, two and three images, and two images to label."""
    images = drawings(3, 5).reshape(3, 5, *SHAPE)
    for row, name in enumerate(("anchor", "boat", "cup")):
        for i in range(row + 1):
            save(images[row, i], tmp_path / "support" / name / f"{i}.png")
    save(images[0, 4], tmp_path / "query" / "first.png")
    save(images[2, 4], tmp_path / "query" / "second.png")
    return tmp_path / "support", tmp_path / "query"


def command(*arguments: str) -> subprocess.CompletedProcess:
    program = [sys.executable, "experiments/predict.py"]
    return subprocess.run(
        [*program, *arguments], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize("steps", [0, 2])
def test_together_is_the_evaluation_of_the_run(run, steps):
    experiment = build(tiny.get_config())
    predictor = load_predictor(run, together=True, steps=steps)
    with Checkpoints(run / "checkpoints", read_only=True) as saved:
        state, _ = saved.restore_best(0, experiment.init(0))
    expected = experiment.predict(state.meta, state.stats, "test", tasks=1)
    bank, spec = embedded_icons(), EpisodeSpec(ways=3, shots=1, queries=2)
    numbers = sample_indices(bank.table("test"), spec, episode_keys(0, 0, 1)[0])
    images = bank.images[np.asarray(numbers)]  # [3 ways, 1 + 2, 28, 28, 1]
    query = images[:, 1:].reshape(6, *SHAPE)
    np.testing.assert_allclose(
        predictor(images[:, 0], np.arange(3), query),
        jax.nn.softmax(expected.outputs[0, steps]),
        rtol=1e-4,
    )


def test_query_is_judged_alone(predictor):
    support, query = drawings(3, 1), drawings(2, 2)
    both = predictor(support, np.arange(3), query)
    one = predictor(support, np.arange(3), query[1:2])
    np.testing.assert_allclose(both[1:2], one, rtol=1e-5)
    np.testing.assert_allclose(both.sum(-1), 1.0)


def test_order_of_support_images_is_free(predictor):
    support, query, labels = drawings(3, 1), drawings(1, 1), np.arange(3)
    shuffled = predictor(support[::-1], labels[::-1], query)
    np.testing.assert_allclose(shuffled, predictor(support, labels, query), rtol=1e-4)


def test_fewer_classes_share_all_probability(predictor):
    support = drawings(2, 2)[:3]  # two images of the first class, one of the second
    probabilities = predictor(support, np.array([0, 0, 1]), drawings(1, 1))
    assert probabilities.shape == (1, 2)
    np.testing.assert_allclose(probabilities.sum(-1), 1.0)


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ([0, 0, 0], r"\(1\) must be 2 to 3"),
        ([0, 2, 2], "each used"),
        ([0, 1], "3 integers"),
    ],
)
def test_labels_that_make_no_task_are_refused(predictor, labels, named):
    with pytest.raises(ValueError, match=named):
        predictor(drawings(3, 1), np.array(labels), drawings(1, 1))


def test_more_classes_than_outputs_are_refused(predictor):
    with pytest.raises(ValueError, match=r"\(4\) must be 2 to 3"):
        predictor(drawings(4, 1), np.arange(4), drawings(1, 1))


@pytest.mark.parametrize(
    "query", [np.zeros((1, *SHAPE)), np.zeros((1, 8, 8, 1), np.uint8)]
)
def test_images_of_another_kind_are_refused(predictor, query):
    with pytest.raises(ValueError, match="`query_images` .* must be uint8"):
        predictor(drawings(3, 1), np.arange(3), query)


def test_latest_checkpoint_can_be_chosen(run):
    assert load_predictor(run, checkpoint="latest").iteration == 6


def test_run_of_another_problem_is_refused(tmp_path):
    tiny.leave_record(tmp_path, sinusoid.get_config())
    with pytest.raises(ValueError, match="a run of regression"):
        load_predictor(tmp_path)


def test_run_without_checkpoints_is_refused(run, tmp_path):
    shutil.copy(run / "run.json", tmp_path)
    with pytest.raises(ValueError, match="no checkpoint yet"):
        load_predictor(tmp_path)


def test_run_that_is_not_validated_has_its_latest(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for best in (tmp_path / "run" / "checkpoints").glob("*/best.json"):
        best.write_text("[]")
    with pytest.raises(ValueError, match='no best .* its "latest" is not validated'):
        load_predictor(tmp_path / "run")
    assert load_predictor(tmp_path / "run", checkpoint="latest").iteration == 6


def test_folder_of_the_probabilities_is_checked_before_the_run(monkeypatch, tmp_path):
    options = ["--run=r", "--support=s", "--query=q", f"--json={tmp_path}/no/p.json"]
    monkeypatch.setattr(sys, "argv", ["predict.py", *options])
    with pytest.raises(ValueError, match=r"--json \(.*p.json\) must lie in a folder"):
        predict.main()


def test_drawing_is_ink_on_paper_whatever_its_colours(tmp_path):
    icon = drawings(1, 1)[0]
    as_trained = save(icon, tmp_path / "white_on_black.png")
    inverted = save(255 - icon, tmp_path / "black_on_white.png")
    ink = np.concatenate([np.zeros((28, 28, 3), np.uint8), icon], axis=-1)
    transparent = save(ink, tmp_path / "transparent.png")
    for path in (as_trained, inverted, transparent):
        np.testing.assert_array_equal(read_image(path, SHAPE), icon)


def test_image_is_resized_to_the_shape(tmp_path):
    halves = np.zeros((8, 16, 3), np.uint8)
    halves[:, 8:] = 255, 0, 0
    image = read_image(save(halves, tmp_path / "halves.png"), (4, 4, 3))
    np.testing.assert_array_equal(image[:, 0], np.zeros((4, 3)))
    np.testing.assert_array_equal(image[:, 3], np.tile([255, 0, 0], (4, 1)))


def test_class_folders_may_differ_in_size(folders):
    images, labels, names = read_classes(folders[0], SHAPE)
    assert images.shape == (6, *SHAPE)
    assert labels.tolist() == [0, 1, 1, 2, 2, 2]
    assert names == ["anchor", "boat", "cup"]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda support: (support / "empty").mkdir(), "empty holds no images"),
        (lambda support: (support / "stray.png").touch(), "stray.png lies outside"),
        (lambda support: (support / "cup/x.png").touch(), "x.png is not an image"),
        (lambda support: shutil.rmtree(support), "does not exist"),
    ],
)
def test_bad_support_folder_is_refused(folders, spoil, named):
    spoil(folders[0])
    with pytest.raises(ValueError, match=named):
        read_classes(folders[0], SHAPE)


def test_blank_drawing_is_refused(tmp_path):
    path = save(np.full(SHAPE, 9, np.uint8), tmp_path / "blank.png")
    with pytest.raises(ValueError, match="blank.png is blank"):
        read_image(path, SHAPE)


def test_query_may_be_one_file(folders):
    assert find_images(folders[1] / "first.png") == [folders[1] / "first.png"]
    assert [path.name for path in find_images(folders[1])] == [
        "first.png",
        "second.png",
    ]


def test_command_prints_and_writes_probabilities(run, folders, tmp_path):
    places = f"--run={run}", f"--support={folders[0]}", f"--query={folders[1]}"
    done = command(*places, f"--json={tmp_path}/out.json")
    assert done.returncode == 0, done.stderr
    predictions = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert [Path(p["image"]).name for p in predictions] == ["first.png", "second.png"]
    for prediction in predictions:
        values = list(prediction["probabilities"].values())
        assert values == sorted(values, reverse=True)
        name = next(iter(prediction["probabilities"]))
        row = next(
            line
            for line in done.stdout.splitlines()
            if line.startswith(Path(prediction["image"]).name)
        )
        assert row.split()[1:3] == [name, f"{values[0]:.2f}"]


def test_mistake_on_the_command_line_is_one_line(folders):
    support, query = folders
    done = command("--run=nowhere", f"--support={support}", f"--query={query}")
    assert done.returncode == 2
    assert "nowhere is not a run" in done.stderr and done.stderr.count("\n") == 1
