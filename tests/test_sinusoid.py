"""Sinusoid tasks: the sampler, the experiment, seeds side by side, and learning."""

import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from configs.regression.sinusoid import get_config
from experiments.train import validate
from l2f_jax.data.sinusoid import Wave, WaveSpec, sample_episode, sample_wave, value
from l2f_jax.evaluation import Predictions
from l2f_jax.problems import build

pytestmark = pytest.mark.mixed_dtypes


def small(arg="l2f,k5", **training):
    config = get_config(arg).unlock()
    config.model.hidden = (8,)
    config.training.update(
        {"iterations": 6, "iterations_per_epoch": 3, "tasks": 4, "seeds": 1} | training
    )
    config.data.test_queries = 7
    return config


def test_value_of_a_wave():
    # 2 sin(3 x - pi / 2) at x = pi / 3 is 2 sin(pi / 2).
    wave = Wave(*map(jnp.asarray, (2.0, 3.0, np.pi / 2)))
    np.testing.assert_allclose(value(wave, jnp.asarray(np.pi / 3)), 2, rtol=1e-6)


def test_waves_fill_their_ranges(key):
    spec = WaveSpec(amplitude=(1, 2), frequency=(3, 3), phase=(-1, 0))
    waves = jax.vmap(lambda k: sample_wave(spec, k))(jax.random.split(key, 500))
    for drawn, (low, high) in zip(waves, spec, strict=False):
        assert low <= drawn.min() and drawn.max() <= high
        assert drawn.max() - drawn.min() >= 0.95 * (high - low)


def test_episode_is_one_wave_at_new_points(key):
    spec = WaveSpec(amplitude=(2, 2), frequency=(1, 1), phase=(0.5, 0.5))
    support, query = sample_episode(spec, 3, 40, key)
    assert support.inputs.shape == (3, 1) and query.targets.shape == (40, 1)
    for part in (support, query):
        np.testing.assert_allclose(
            part.targets, 2 * np.sin(part.inputs - 0.5), atol=1e-6
        )
    assert not set(np.ravel(support.inputs)) & set(np.ravel(query.inputs))
    assert np.ptp(query.inputs) > 5 and np.abs(query.inputs).max() <= 5


def test_test_ranges_may_differ():
    config = small()
    config.data.test.amplitude = (6.0, 7.0)
    experiment = build(config)
    state = experiment.init(0)
    for split, low, high in (("val", 0, 5), ("test", 4, 7)):
        predictions = experiment.predict(state.meta, state.stats, split, 50)
        peak = np.abs(predictions.targets).max()
        assert low < peak <= high


def transform_of(config):
    return build(config).init(0).meta.transform


def test_attenuation_may_start_near_one(monkeypatch):
    config, found = small().lock(), flags.FlagValues()
    given = ["--config.transform.bias=4", "--config.transform.embedding_scale=10"]
    monkeypatch.setattr(sys, "argv", ["train.py", *given])  # where they are looked for
    config_flags.DEFINE_config_dict("config", config, flag_values=found)
    found(sys.argv)
    assert config.transform.embedding_scale == 10.0
    np.testing.assert_array_equal(transform_of(config)["layer_1/bias"], 4)


def test_run_recorded_before_a_key_was_there_still_builds():
    record = json.loads(small().to_json())
    expected = transform_of(ConfigDict(record))
    del record["transform"]["bias"], record["transform"]["embedding_scale"]
    older = transform_of(ConfigDict(record))
    for name, x in expected.items():
        np.testing.assert_array_equal(older[name], x)


def test_points_beyond_the_trained_steps():
    experiment = build(small())
    state = experiment.init(0)
    predictions = experiment.predict(state.meta, state.stats, "test", 5)
    assert experiment.points == (0, 1, 2, 5, 10)
    assert predictions.outputs.shape == (5, 5, 7, 1)
    alone = experiment.predict(state.meta, state.stats, "test", 5, points=(10,))
    last = predictions.outputs[:, 4]
    np.testing.assert_allclose(alone.outputs[:, 0], last, rtol=1e-6, atol=1e-7)


def test_diverged_tasks_are_counted_and_not_dropped():
    experiment = build(small())
    targets = np.zeros((3, 2, 1))
    outputs = np.zeros((3, 1, 2, 1))
    outputs[1], outputs[2] = np.nan, 11.0
    scores = experiment.scores(Predictions(outputs, targets))
    np.testing.assert_array_equal(scores["diverged"][:, 0], [0, 1, 1])
    np.testing.assert_array_equal(scores["mse"][:, 0], [0, np.nan, 121])
    assert experiment.score.rank(scores["mse"][:, 0]) == -121


def test_seeds_side_by_side_are_the_runs_of_each_seed():
    together = build(small(seeds=2))
    state = together.init(3)
    state, _ = together.update(state, 0, 3)
    assert together.seeds == 2 and int(state.step) == 3
    both = together.predict(state.meta, state.stats, "test", 4).outputs
    alone = build(small())
    for i in range(2):
        own, _ = alone.update(alone.init(3 + i), 0, 3)
        expected = alone.predict(own.meta, own.stats, "test", 4).outputs
        np.testing.assert_allclose(both[4 * i : 4 * i + 4], expected, atol=1e-5)


def test_validation_of_seeds_has_the_interval_of_their_tasks():
    experiment = build(small(seeds=3))
    state, said, ranked = experiment.init(0), [], []
    recorder = SimpleNamespace(
        log=lambda *_: None, say=said.append, time_left=lambda _: "no time"
    )
    validate(experiment, state, 0, recorder, SimpleNamespace(rank=ranked.append))
    tasks = experiment.evaluation.validation_tasks
    found = experiment.predict(state.meta, state.stats, "val", tasks, points=(1,))
    errors = experiment.scores(found)["mse"].reshape(3, tasks).mean(0)
    half = 1.96 * errors.std(ddof=1) / np.sqrt(tasks)
    assert f"mse {errors.mean():.4f} +- {half:.4f}," in said[0]
    assert len(ranked) == 1


def test_measures_of_seeds_follow_each_other_on_the_same_tasks():
    experiment = build(small(seeds=2))
    state = experiment.init(3)

    def seen(meta, stats, episode):
        return meta.params["head/kernel"][0], episode.support.inputs

    head, inputs = experiment.measure(state.meta, state.stats, "train", 3, seen)
    kernels = np.asarray(state.meta.params["head/kernel"])[:, 0]
    np.testing.assert_array_equal(head, np.repeat(kernels, 3, axis=0))
    np.testing.assert_array_equal(inputs[:3], inputs[3:])
    assert np.ptp(inputs[:3, 0]) > 0


@pytest.mark.parametrize(
    ("key", "bad", "message"),
    [
        ("data.shots", 0, "`data.shots` .0. must be at least 1"),
        ("data.train.phase", (1.0, 0.0), "`data.train.phase` .* low <= high"),
        ("data.test", {"amplitude": (0.0, float("inf"))}, "`data.test.amplitude`"),
        (
            "data.test",
            {"amplitudes": (0.0, 1.0)},
            "`data.test.amplitudes` is no option",
        ),
        ("training.seeds", 0, "`training.seeds` .0."),
        ("evaluation.points", (0, 2), "`evaluation.points` .* `learner.steps` .1."),
        ("evaluation.points", (0.5, 1), "`evaluation.points` .0.5, 1. .* increasing"),
        ("evaluation.points", (1, 0), "`evaluation.points` .1, 0. must be increasing"),
        ("evaluation.points", (0, 1, 1), "`evaluation.points` .* must be increasing"),
        ("model.hidden", (40.5,), "`model.hidden` ..40.5,.. must be integers"),
        ("model.hidden", "wide", "`model.hidden` .'wide'. must be an integer"),
        ("optimiser.clip", -1.0, "`optimiser.clip` .-1.0. must be at least 0"),
        ("model.name", "conv4", "`model.name` .'conv4'. must be one of mlp"),
    ],
)
def test_mistakes_are_named(key, bad, message):
    config = small()
    section, _, name = key.rpartition(".")
    part = config
    for step in section.split("."):
        part = part[step]
    with part.ignore_type():
        part[name] = bad
    with pytest.raises(ValueError, match=message):
        build(config)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["maml", "l2f"])
def test_learns_to_fit_a_sinusoid_in_one_step(method):
    """A constant 0 has a mean squared error of 4.1 on these tasks."""
    config = get_config(f"{method},k10").unlock()
    config.training.update({"iterations": 3000, "iterations_per_epoch": 3000})
    config.training.seeds = 1
    experiment = build(config)
    state, _ = experiment.update(experiment.init(0), 0, 3000)
    predictions = experiment.predict(state.meta, state.stats, "val", 300, points=(0, 1))
    before, after = experiment.scores(predictions)["mse"].mean(0)
    assert after < 2 and after < before - 0.8
