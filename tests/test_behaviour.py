"""Figures 4 and 5: fits, errors, returns, paths and poses of toy runs."""

import json

import numpy as np
import pytest

from configs.regression import sinusoid
from configs.rl import half_cheetah, navigation
from experiments import behaviour, curves, motion, plots
from experiments.figures import FIGURES
from experiments.frames import SIZE, frames
from experiments.runs import last_state, open_runs
from experiments.train import claim
from l2f_jax.checkpoint import Checkpoints
from l2f_jax.problems import build

pytestmark = pytest.mark.mixed_dtypes


def finished(config, folder):
    """A run of no training: its last checkpoint is its start."""
    experiment = build(config)
    claim(folder, config, experiment)
    with Checkpoints(folder / "checkpoints") as saved:
        saved.save(config.training.iterations, experiment.init(config.seed))
        saved.rank(0.0)
    return open_runs([folder])[0]


@pytest.fixture(scope="module")
def wave(tmp_path_factory):
    config = sinusoid.get_config("l2f,k5")
    config.model.hidden = (4,)
    config.training.seeds = 2
    config.evaluation.test_tasks = 8
    return finished(config, tmp_path_factory.mktemp("runs") / "wave")


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    config = navigation.get_config("maml")
    config.model.hidden, config.env.horizon = (3,), 4
    config.sampling.trajectories, config.evaluation.trajectories = 2, 3
    config.evaluation.surplus = 0
    config.evaluation.test_tasks = 3
    return finished(config, tmp_path_factory.mktemp("runs") / "walk")


def drawn(draw, numbers, path):
    with plots.grid(1, path) as (axes,):
        draw({"run": numbers}, axes)
        return len(axes.get_lines())


def test_fits_pass_through_what_the_learner_predicts(wave, tmp_path):
    n = behaviour.fits(wave, 2)
    assert n["steps"] == 1 and len(n["tasks"]) == behaviour.SHOWN
    assert (n["x"][0], n["x"][-1], len(n["x"])) == (-5, 5, 201)
    # Of two seeds the first is shown, and its tasks come first.
    state = last_state(wave)
    shown = wave.experiment.predict(
        state.meta, state.stats, "test", behaviour.SHOWN, points=(0, 1)
    )
    for i, task in enumerate(n["tasks"]):
        assert len(task["support"]["inputs"]) == 5
        x = task["curve"]["inputs"]
        assert np.all(np.diff(x) >= 0)
        # The predictions' queries are not sorted; their targets tell which is which.
        same = np.argsort(task["curve"]["targets"])
        order = np.argsort(shown.targets[i, :, 0])
        for t, name in enumerate(("before", "after")):
            fitted = np.interp(x, n["x"], task[name])[same]
            predicted = shown.outputs[i, t, order, 0]
            np.testing.assert_allclose(fitted, predicted, atol=0.05 * np.ptp(fitted))
    # A curve, its support, and two fits of each task.
    shown = behaviour.SHOWN
    assert drawn(behaviour.draw_fits, n, tmp_path / "a.png") == 4 * shown


def test_errors_are_quartiles_over_tasks_and_seeds(wave, tmp_path):
    n = behaviour.adaptation(wave, 8)
    state = last_state(wave)
    predictions = wave.experiment.predict(state.meta, state.stats, "test", 8)
    scores = wave.experiment.scores(predictions)["mse"]
    assert scores.shape == (16, 5) and n["point"] == [0, 1, 2, 5, 10]
    np.testing.assert_allclose(np.array(n["quartiles"])[:, 1], np.median(scores, 0))
    assert drawn(FIGURES["4b"].draw, n, tmp_path / "a.png") == 1


def test_disjoint_ranges_share_no_task():
    data = sinusoid.get_config("maml,disjoint").data
    for name in ("amplitude", "frequency", "phase"):
        assert data.train[name][1] == data.test[name][0] < data.test[name][1]
    assert build(sinusoid.get_config("maml,disjoint")).facts["test"] == {
        **data.test.to_dict(),
        "inputs": (-5.0, 5.0),
    }


def test_returns_and_learning_are_those_of_the_run(walk, tmp_path):
    n = behaviour.adaptation(walk, 3)
    assert n["point"] == [0, 1, 2, 3] and len(n["mean"]) == len(n["half"]) == 4
    state = last_state(walk)
    predictions = walk.experiment.predict(state.meta, state.stats, "test", 3)
    found = walk.experiment.scores(predictions)["return"]
    np.testing.assert_allclose(n["mean"], found.mean(0), rtol=1e-6)
    half = 1.96 * found.std(0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(n["half"], half, rtol=1e-5)
    drawn(FIGURES["5b"].draw, n, tmp_path / "a.png")
    (walk.path / "metrics.jsonl").write_text(
        '{"step": 10, "validation/return": -3.5}\n'
    )
    found = behaviour.learning(walk, 3)
    assert found == {"step": [10], "return": [-3.5]}
    assert drawn(FIGURES["5a"].draw, found, tmp_path / "b.png") == 1


def test_gammas_of_training_are_drawn_within_their_deviation(tmp_path):
    rows = [{"step": 10, "transform/gamma": 0.5, "transform/gamma_deviation": 0.1}]
    rows += [{"step": 10, "validation/return": 1.0}, {**rows[0], "step": 20}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = curves.attenuation(tmp_path)
    assert found == {"step": [10, 20], "gamma": [0.5] * 2, "deviation": [0.1] * 2}
    with plots.grid(1, tmp_path / "a.png") as (axes,):
        curves.draw_attenuation({"a": found}, axes)
        (band,) = [shade.get_datalim(axes.transData) for shade in axes.collections]
    np.testing.assert_allclose(band.get_points(), [[10, 0.4], [20, 0.6]])


def test_paths_begin_at_the_start_and_move_a_step_at_a_time(walk, tmp_path):
    n = motion.motion(walk, 3)
    assert len(n["tasks"]) == motion.TASKS
    for task in n["tasks"]:
        assert np.shape(task["goal"]) == (2,) and len(task["before"]) == 3
        for path in task["before"] + task["after"]:
            assert path[0] == [0, 0] and len(path) <= 4
            assert np.abs(np.diff(path, axis=0)).max() <= 0.1 + 1e-6
    # The evaluation's three trajectories before and after and a goal for each task, and
    # the name.
    expected = motion.TASKS * 7 + 1
    assert drawn(motion.draw_motion, n, tmp_path / "a.png") == expected


@pytest.mark.parametrize("variant", ["maml", "gym"])
def test_poses_are_of_a_body_that_falls_on_its_feet(variant, tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    config = half_cheetah.get_config("maml,direction")
    config.model.hidden, config.env.horizon = (3,), 20
    config.env.variant, config.sampling.trajectories = variant, 2
    n = motion.motion(finished(config, tmp_path / "run"), 3)
    poses = np.array([task["poses"] for task in n["tasks"]])
    assert poses.shape == (motion.TASKS, motion.POSES, 8, 4)  # limbs
    limbs = poses.reshape(-1, 8, 2, 2)
    lengths = np.linalg.norm(limbs[:, :, 1] - limbs[:, :, 0], axis=-1)
    # The torso is a metre long; no limb changes its length, or sinks into the floor.
    np.testing.assert_allclose(lengths, lengths[:1].repeat(len(lengths), 0), atol=1e-4)
    assert abs(lengths.max() - 1.0) < 1e-4 and limbs[..., 1].min() > -0.02
    positions = np.array([task["positions"] for task in n["tasks"]])
    assert positions.shape == (motion.TASKS, motion.POSES, 9)
    expected = motion.TASKS * (motion.POSES * 8 + 1) + 1
    monkeypatch.setattr(motion, "frames", lambda _: None)
    assert drawn(motion.draw_motion, n, tmp_path / "a.png") == expected

    def pictures(shown):
        seen.append(shown)
        numbers = np.arange(len(shown), dtype=np.uint8)
        return np.tile(numbers[:, None, None, None], (1, 1, 1, 3))

    seen = []
    monkeypatch.setattr(motion, "frames", pictures)
    with plots.grid(1, tmp_path / "b.png") as (axes,):
        motion.draw_motion({"a": n, "b": n}, axes)
    every_second = positions[:, ::2].repeat(2, axis=0)  # of both runs, task by task
    np.testing.assert_array_equal(seen[0], every_second.reshape(-1, 9))
    strips = [image.get_array()[0, :, 0] for image in axes.images]
    np.testing.assert_array_equal(np.concatenate(strips), np.arange(len(seen[0])))
    names = [text.get_text().partition(":")[0] for text in axes.texts]
    assert names == ["a", "b"] * motion.TASKS


def test_frames_show_a_robot_that_the_camera_follows(monkeypatch):
    pytest.importorskip("mujoco")
    positions = np.zeros((3, 9))
    positions[1, 0], positions[2, 2] = 40.0, 1.0  # far away; on its nose
    found = frames(positions)
    if found is None:
        pytest.skip("MuJoCo cannot draw here")
    assert found.shape == (3, *SIZE, 3)
    red, _, blue = np.moveaxis(found.astype(int), -1, 0)
    where = red > blue + 40  # a robot of copper before grey and green
    assert (where[0] & where[1]).sum() > 0.9 * where[0].sum() > 100
    assert (where[0] & where[2]).sum() < 0.5 * where[0].sum()
    monkeypatch.setenv("MUJOCO_GL", "nothing")
    assert frames(positions) is None
