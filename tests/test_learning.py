"""Meta-training learns: classes that a network cannot tell apart before it.

A class is how strong stripes of three directions are, each absent, present or inverted,
under noise of the same strength; those of training and of validation are disjoint.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest

from l2f_jax.data.writer import write_bank
from l2f_jax.problems import build
from tests import tiny

pytestmark = [pytest.mark.mixed_dtypes, pytest.mark.slow]  # Adam

SIDE, STRENGTH, ITERATIONS = 8, 15, 300


@pytest.fixture(scope="module")
def stripes(tmp_path_factory) -> Path:
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    waves = np.stack([(-1) ** k for k in (rows, columns, rows + columns)])
    classes = random.permutation(list(itertools.product((-1, 0, 1), repeat=3)))
    parts = {"train": classes[:15], "val": classes[15:21], "test": classes[21:]}
    bank = tmp_path_factory.mktemp("data") / "stripes"
    with write_bank(bank, {"source": "stripes"}) as add:
        for split, signs in parts.items():
            for i, sign in enumerate(signs):
                noise = random.normal(size=(20, SIDE, SIDE))
                x = 127 + STRENGTH * (np.tensordot(sign, waves, 1) + noise)
                add(f"{split} {i}", split, x.clip(0, 255).astype(np.uint8)[..., None])
    return bank


@pytest.mark.parametrize("method", ["maml", "l2f"])
def test_classes_are_told_apart_after_two_steps_on_an_image_of_each(stripes, method):
    config = tiny.get_config(method)
    config.data.bank, config.model.filters = str(stripes), 8
    config.learner.lr, config.optimiser.lr = 0.1, 0.01
    config.training.iterations = config.training.iterations_per_epoch = ITERATIONS
    config.training.iterations_per_dispatch = ITERATIONS
    config.training.first_order_epochs = 0
    experiment = build(config)

    def accuracies(state) -> np.ndarray:
        found = experiment.predict(state.meta, state.stats, "val", 100, points=(0, 2))
        return experiment.scores(found)["accuracy"].mean(0)

    state = experiment.init(0)
    untrained = accuracies(state)
    state, _ = experiment.update(state, 0, ITERATIONS)
    before, after = accuracies(state)
    assert untrained[1] < 0.5 and after > 0.75
    assert abs(before - 1 / 3) < 0.1  # there is no telling which class has which label
