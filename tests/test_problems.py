"""Sections, the schedule, and the objective of a program."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from configs.classification.base import get_config
from l2f_jax.data.bank import embedded_icons
from l2f_jax.evaluation import Interval
from l2f_jax.losses import cross_entropy
from l2f_jax.problems import Score, build
from l2f_jax.problems.saved import check_data
from l2f_jax.problems.schedule import Program, Schedule
from l2f_jax.problems.sections import call, select
from l2f_jax.problems.supervised import Method, objective
from l2f_jax.storage import Unreadable
from l2f_jax.types import Batch, Episode
from tests import tiny, toys


def schedule(**options):
    """Epochs of 10 iterations, the last cut short after 5."""
    short = dict(iterations=25, iterations_per_epoch=10, first_order_epochs=0)
    return Schedule(**{**get_config().training, **short, **options})


def test_negative_seed_is_refused():
    with pytest.raises(ValueError, match=r"`seed` \(-1\) must be at least 0"):
        build({**get_config(), "seed": -1})


def test_last_epoch_may_be_short():
    assert schedule().epochs == 3
    assert schedule(iterations=20).epochs == 2


@pytest.mark.parametrize(
    ("step", "boundary"), [(0, 10), (9, 10), (10, 20), (20, 25), (24, 25)]
)
def test_boundary_is_the_end_of_the_epoch_or_run(step, boundary):
    assert schedule().boundary(step) == boundary


def test_programs_change_with_the_epoch():
    annealed = schedule(first_order_epochs=1, multi_step_epochs=2)
    programs = [annealed.program(step) for step in (0, 9, 10, 19, 20)]
    assert programs[0] == programs[1] == Program(first_order=True, multi_step=True)
    assert programs[2] == programs[3] == Program(first_order=False, multi_step=True)
    assert programs[4] == Program(first_order=False, multi_step=False)


def test_order_1_is_first_order_throughout():
    assert schedule(order=1).program(24).first_order


def test_multi_step_weights_follow_the_epoch():
    built = Method(
        toys.counting(), 2, schedule(multi_step_epochs=2), None, cross_entropy, {}
    )
    query = Batch(jnp.array([[1.0, 0.0]]), jnp.array([0]))
    meta, stats = built.learner.init(None, None)
    value = objective(built, Program(first_order=False, multi_step=True)).value

    def loss(step):
        return value(meta, stats, Episode(None, query), jnp.asarray(step), None)[0]

    # log(1 + e^-t) after t steps, weights 1/2, 1/2 and then 1/4, 3/4
    one, two = jax.nn.softplus(-1.0), jax.nn.softplus(-2.0)
    assert loss(0) == loss(9) == pytest.approx(float((one + two) / 2), rel=1e-6)
    assert loss(10) == pytest.approx(float((one + 3 * two) / 4), rel=1e-6)


def component(size, *, width=1, extra=None):
    return size, width, extra


def test_select_passes_the_other_keys_and_the_context():
    section = {"name": "it", "size": 2}
    assert select(section, "part", {"it": component}, extra=3) == (2, 1, 3)


def test_context_is_no_option():
    with pytest.raises(ValueError, match="`part.extra` is no option here"):
        call(component, {"size": 1, "extra": 2}, "part", extra=3)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "that"}, r"`part.name` \('that'\) must be one of it"),
        ({}, r"`part.name` \(None\) must be one of it"),
        ({"name": "it"}, "`part.size` is missing"),
        ({"name": "it", "size": 1, "w": 2}, "`part.w` .* the options are size, width"),
    ],
)
def test_wrong_section_is_refused(section, message):
    with pytest.raises(ValueError, match=message):
        select(section, "part", {"it": component})


def test_a_component_s_own_error_names_the_config_s_key():
    def refusing(size, width=1):
        raise ValueError(f"`size` ({size}) must be below `width` ({width}) and `depth`")

    section = {"name": "it", "size": 3}
    with pytest.raises(ValueError, match="^`part.size` .3. .* `width` .1. and `depth`"):
        select(section, "part", {"it": refusing})

    def damaged(size):
        raise Unreadable("step 3 is damaged")

    with pytest.raises(Unreadable, match="^step 3 is damaged$"):
        select(section, "part", {"it": damaged})


def test_a_share_is_shown_in_percent():
    value = Interval(0.52104, 0.00496, 600)
    assert Score("accuracy", rank=max, percent=True).text(value) == "52.10 +- 0.50"
    assert Score("mse", rank=max).text(value) == "0.5210 +- 0.0050"


def test_a_data_set_is_known_by_its_classes(tmp_path):
    record = tiny.leave_record(tmp_path, tiny.get_config())
    bank = embedded_icons("semantic")
    check_data(tmp_path, bank.facts())  # a record older than digests
    record["data"] = bank.facts()
    (tmp_path / "run.json").write_text(json.dumps(record))
    check_data(tmp_path, bank.facts())
    check_data(tmp_path, bank.only("test").facts())  # of what both have
    exchanged = {"val": "test", "test": "val"}
    splits = tuple(exchanged.get(split, split) for split in bank.splits)
    with pytest.raises(ValueError, match="trained on: classes of 'test' 59 then, 51"):
        check_data(tmp_path, dataclasses.replace(bank, splits=splits).facts())
    renamed = tuple(f"other {name}" for name in bank.classes)
    with pytest.raises(ValueError, match="trained on: digest of 'test' "):
        check_data(tmp_path, dataclasses.replace(bank, classes=renamed).facts())
