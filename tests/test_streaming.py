"""Images streamed from a bank: the same training as with the bank on the device."""

import json

import jax
import numpy as np
import pytest

from experiments.recording import read_metrics
from experiments.train import train
from l2f_jax import evaluation
from l2f_jax.checkpoint import Checkpoints
from l2f_jax.data.bank import embedded_icons
from l2f_jax.data.episodes import EpisodeSpec, preprocessing
from l2f_jax.evaluation import make_measure
from l2f_jax.parallel import task_mesh
from l2f_jax.problems import build
from l2f_jax.problems.episodic import Feed, RawImages, own_tasks
from tests import tiny
from tests.test_train import assert_identical, final_state, finish, two_processes

pytestmark = pytest.mark.mixed_dtypes  # the outer rate

# Adam would divide what rounding leaves of vanishing gradients by as little.
SGD = {"name": "sgd", "lr": 0.1, "min_lr": 0.1}


def config_of(placement, iterations=12):
    config = tiny.get_config()
    config.data.placement, config.training.iterations = placement, iterations
    config.optimiser.update(SGD)
    config.training.order = 1  # a single program, and the one that compiles faster
    return config


def state_of(run):
    return final_state(run, config_of("device"))


@pytest.fixture(scope="module")
def on_device(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "device"
    assert train(config_of("device"), run)
    return run


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "stream"
    assert train(config_of("stream"), run)
    return run


def assert_same_training(one, two):
    """The parameters moved, and alike; two programs, so that roundings may differ."""
    before = jax.tree.leaves(build(config_of("device")).init(0).meta)
    one, two = (jax.tree.leaves(state_of(run).meta) for run in (one, two))
    assert max(abs(x - y).max() for x, y in zip(before, one, strict=True)) > 0.1
    for x, y in zip(one, two, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_streamed_training_is_that_on_the_device(on_device, streamed):
    assert_same_training(on_device, streamed)
    for one, two in zip(*map(read_metrics, (on_device, streamed)), strict=True):
        assert one == pytest.approx(two, rel=1e-5, abs=1e-5)


def test_resumed_streamed_run_is_identical(streamed, tmp_path):
    for iterations in (3, 12):  # 3: within an epoch
        assert train(config_of("stream", iterations), tmp_path / "run")
    assert_identical(state_of(streamed), state_of(tmp_path / "run"))


def test_streamed_episodes_are_those_made_on_the_device(key):
    spec, preprocess = (
        EpisodeSpec(ways=3, shots=1, queries=2),
        preprocessing((0,), (1,)),
    )
    device, stream = (
        Feed(
            embedded_icons(), "train", spec, preprocess, placement=p, mesh=task_mesh(1)
        )
        for p in ("device", "stream")
    )
    raw = stream.training_items(key, 5, 2, 4)  # steps 5 and 6, of 4 tasks each
    for step, task in np.ndindex(2, 4):
        number = (5 + step) * 4 + task
        episode_key, _ = jax.random.split(jax.random.fold_in(key, number))
        expected = device.episode(device.shared, (), episode_key)
        assert expected.support.inputs.std() > 0
        assert_identical(expected, stream.episode((), raw[step, task], episode_key))


@pytest.mark.parametrize("owners", [[0], [0, 0, 1, 1], [0, 1, 0, 1], [2, 1, 0]])
def test_processes_sample_all_tasks_each_once(owners):
    shares = [own_tasks(12, owners, process) for process in set(owners)]
    assert {len(share) for share in shares} == {12 // len(set(owners))}
    assert sorted(np.concatenate(shares)) == list(range(12))


def test_a_process_samples_the_tasks_of_its_devices():
    assert own_tasks(8, [0, 0, 1, 1], 1).tolist() == [4, 5, 6, 7]
    assert own_tasks(8, [0, 1, 0, 1], 1).tolist() == [2, 3, 6, 7]


@pytest.mark.slow  # starts many programs; .ci/run has it
def test_two_processes_of_two_devices_train_as_one(on_device, tmp_path):
    run = tmp_path / "run"
    options = [f"--config.optimiser.{key}={value}" for key, value in SGD.items()]
    options += ["--config.data.placement=stream", "--config.training.order=1"]
    with two_processes(run, *options, devices=2) as processes:
        first, second = finish(processes)
    assert json.loads((run / "run.json").read_text())["processes"] == 2
    assert_same_training(on_device, run)
    # Only the first process records and shows; else all of this were there twice.
    recorded = [[r["step"] for r in read_metrics(path)] for path in (on_device, run)]
    assert recorded[0] == recorded[1]
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert "complete at 12" in first and str(run) not in second
    with Checkpoints(run / "checkpoints", read_only=True) as saved:
        assert saved.steps == [6, 12]
        records = [run / "checkpoints" / str(step) / "record" for step in saved.steps]
    assert [len(list(folder.glob("metadata*"))) for folder in records] == [1, 1]


# Evaluation ------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged():
    """Return (placement, tasks) -> what a new learner predicts."""
    built = {p: build(config_of(p)) for p in ("device", "stream")}
    states = {p: experiment.init(0) for p, experiment in built.items()}

    def predict(placement, tasks):
        state = states[placement]
        return built[placement].predict(state.meta, state.stats, "val", tasks)

    return predict


def test_streamed_evaluation_is_that_on_the_device(judged):
    one, two = judged("device", 70), judged("stream", 70)
    np.testing.assert_array_equal(one.targets, two.targets)
    np.testing.assert_allclose(one.outputs, two.outputs, rtol=1e-5, atol=1e-5)


def test_number_of_tasks_does_not_change_their_predictions(judged):
    many, few = judged("stream", 70), judged("stream", 3)
    assert many.targets.shape[0] == 70
    assert_identical(jax.tree.map(lambda x: x[:3], many), few)


def test_the_seed_of_an_evaluation_chooses_its_tasks(judged):
    config = config_of("device")
    config.evaluation.seed = 1
    other = build(config)
    state = other.init(0)
    found = other.predict(state.meta, state.stats, "val", 3)
    assert (found.outputs != judged("device", 70).outputs[:3]).any()


class Counted(RawImages):
    taken = []

    def __getitem__(self, tasks):
        self.taken.append(tasks.tolist())
        return super().__getitem__(tasks)


@pytest.mark.parametrize(
    ("tasks", "at_once", "sizes"),
    [(5, 1, [5]), (5, 3, [6]), (64, 1, [32, 32]), (70, 1, [24] * 3), (70, 2, [36] * 2)],
)
def test_images_of_few_tasks_are_read_at_once(tasks, at_once, sizes):
    images = np.arange(tasks, dtype=np.uint8)[:, None, None, None]
    items = Counted(images, np.arange(tasks)[:, None, None])
    items.taken.clear()
    total = make_measure(
        lambda meta, stats, episode: episode.sum(),
        lambda shared, item: item.astype(np.float32),
        mesh=task_mesh(1),
        at_once=at_once,
    )
    assert total((), (), (), items).tolist() == list(range(tasks))
    assert [len(numbers) for numbers in items.taken] == sizes


def test_a_part_is_read_before_the_results_of_the_one_before_are_fetched(monkeypatch):
    happened = []

    class Logged:  # NumPy, which the results are fetched by
        def asarray(self, x):
            happened.append(("fetched", int(x[0])))
            return np.asarray(x)

        def __getattr__(self, name):
            return getattr(np, name)

    class Items(RawImages):
        def __getitem__(self, tasks):
            happened.append(("read", int(tasks[0])))
            return super().__getitem__(tasks)

    monkeypatch.setattr(evaluation, "np", Logged())
    images = np.arange(70, dtype=np.uint8)[:, None, None, None]
    items = Items(images, np.arange(70)[:, None, None])
    numbers = make_measure(
        lambda meta, stats, episode: episode.sum(),
        lambda shared, item: item.astype(np.float32),
        mesh=task_mesh(1),
    )((), (), (), items)
    assert numbers.tolist() == list(range(70))
    first, second, third = 0, 24, 48
    assert happened == [
        ("read", first),
        ("read", second),
        ("fetched", first),
        ("read", third),
        ("fetched", second),
    ]
