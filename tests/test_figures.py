"""Figures: every panel of a toy run with its numbers, and mistakes in one line."""

import json
import shutil
import sys

import matplotlib.image
import numpy as np
import pytest

from configs.regression import sinusoid
from configs.rl import half_cheetah
from experiments import cells, figures, panels
from experiments.identity import short_names
from experiments.runs import open_runs
from experiments.train import claim, train
from l2f_jax.checkpoint import Checkpoints
from l2f_jax.problems import build
from l2f_jax.scopes import scope_of
from tests import tiny

pytestmark = pytest.mark.mixed_dtypes  # Adam


def toy(variant):
    config = tiny.get_config(variant)
    config.training.iterations_per_epoch = 3
    config.training.iterations, config.training.keep_every = 6, 1
    config.training.first_order_epochs = 0
    config.evaluation.ensemble = 1
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Train a run with gammas; one without goes no further than its start."""
    folder = tmp_path_factory.mktemp("runs")
    assert train(toy("l2f"), folder / "l2f")
    plain, maml = toy("maml"), folder / "maml"
    claim(maml, plain, build(plain))
    with Checkpoints(maml / "checkpoints") as saved:
        saved.save(6, build(plain).init(0))
        saved.rank(0.0)
    return folder


@pytest.fixture
def command(monkeypatch):
    """Return a function that runs the program and returns its exit code."""
    monkeypatch.setattr(figures.launch, "set_up", lambda *_: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["figures.py", *map(str, arguments)])
        try:
            figures.launch.guard(figures.main)
        except SystemExit as end:
            return end.code
        return 0

    return run


def config_of(run, **changes):
    """Change keys of a run's record, given as section_key."""
    path = run / "run.json"
    record = json.loads(path.read_text())
    for key, value in changes.items():
        section, _, last = key.partition("_")
        part = record["config"][section] if last else record["config"]
        part[last or section] = value
    path.write_text(json.dumps(record))


# What it draws -----------------------------------------------------------------


def test_every_panel_of_both_figures(runs, command):
    numbers = {}
    sizes = {"2": (510, 2025), "3": (1020, 1350), "6": (510, 1350)}
    for figure, size in sizes.items():
        out = runs / f"{figure}.png"
        arguments = f"--figure={figure}", f"--out={out}", "--tasks=4"
        assert command(*arguments, runs / "l2f") == 0
        assert matplotlib.image.imread(out).shape[:2] == size
        record = json.loads(out.with_suffix(".json").read_text())
        assert record["tasks"] == 4 and "jax" in record["versions"]
        numbers |= record["runs"]["l2f"]
    check_landscapes(numbers.pop("landscapes"))
    check_conflicts(numbers.pop("conflicts"))
    check_attenuations(numbers.pop("attenuations"))
    check_rates(numbers.pop("effective_rates"), numbers.pop("generated")["layers"])
    check_embeddings(numbers.pop("embedded")["layers"])
    assert not numbers


def test_a_matched_cell_takes_the_rates_that_gammas_amount_to(runs, monkeypatch):
    source, run = runs / "l2f" / "seed_0", runs / "matched" / "seed_0"
    if not source.exists():
        source.symlink_to(runs / "l2f")
    config = toy("maml")
    monkeypatch.setattr(
        cells, "train", lambda config, run: claim(run, config, build(config)) is None
    )
    monkeypatch.setattr(cells, "judged", lambda *_, **__: None)
    assert cells.run_missing({run: config}, "l2f")
    (of,) = open_runs([source])
    found = panels.effective_rates(of, cells.MATCHING_TASKS, "val")["layers"]
    assert config.learner.rates.to_dict() == {
        "conv_0/kernel": np.median(found["conv_0/kernel"])
    }
    assert config.learner.rates["conv_0/kernel"] > config.learner.lr

    # From here on its own record says them.
    source.unlink()
    again = {run: toy("maml")}
    assert cells.run_missing(again, "l2f") and cells.judge(again, "l2f") is None
    assert again[run] == config


LAYERS = {"conv_0/kernel", "head/kernel", "head/bias"}


def check_landscapes(n):
    assert n["step"] == [0, 3, 6]
    np.testing.assert_allclose([n["rates"][0], n["rates"][-1]], [0.005, 0.04])
    for ranges in (n["loss"], n["difference"]):
        assert all(0 < least < largest for least, largest in ranges)
    assert all(beta > 0 for beta in n["smoothness"])


def check_conflicts(n):
    assert n["step"] == [0, 3, 6] and n["batch"] == 4 and set(n["layers"]) == LAYERS
    angles = np.array([*n["layers"].values()])
    assert angles.shape == (3, 3) and ((angles > 0) & (angles < np.pi)).all()
    assert len(set(n["by_task"])) == 4


def check_attenuations(n):
    assert n["gamma"] == [0.1, 0.25, 0.5, 0.75, 1.0] and set(n["layers"]) == LAYERS
    found = np.array([*n["layers"].values()])
    assert found.shape == (3, 5, 2) and ((found >= 0) & (found <= 1)).all()
    assert (found[:, -1] == found[0, -1]).all()  # untouched: the same for all layers
    assert len(np.unique(found[:, :-1, 0])) > 1


def check_rates(n, gammas):
    assert set(n["layers"]) == {"conv_0/kernel"} and n["lr"] == 0.01
    rates, gammas = (np.array(x["conv_0/kernel"]) for x in (n["layers"], gammas))
    np.testing.assert_allclose(rates * gammas**2, 0.01, rtol=1e-6)


def check_embeddings(layers):
    """A softmax head's mean gradient is zero, whatever the task."""
    assert set(layers) == LAYERS and {len(x) for x in layers.values()} == {4}
    sizes = {path: np.abs(x).max() for path, x in layers.items()}
    assert max(sizes["head/kernel"], sizes["head/bias"]) < 1e-6 < sizes["conv_0/kernel"]


def test_one_panel_of_two_runs_goes_into_the_first(runs, command, capsys):
    assert command("--figure=3d", runs / "l2f", runs / "maml", "--tasks=6") == 0
    assert str(runs / "l2f" / "figure_3d.png") in capsys.readouterr().out
    found = json.loads((runs / "l2f" / "figure_3d.json").read_text())["runs"]
    layers = found["l2f"]["generated"]["layers"]
    assert set(layers) == LAYERS and np.shape(list(layers.values())) == (3, 6)
    assert all(0 < gamma < 1 for tasks in layers.values() for gamma in tasks)
    assert found["maml"] == {"generated": {"layers": {}}}


def test_conflict_is_with_the_tasks_of_the_own_batch():
    # Four tasks that agree, then four that are orthogonal.
    agreeing, orthogonal = np.ones((4, 4)), np.eye(4)
    u = {"a": np.concatenate([agreeing, orthogonal]).astype(np.float32)}
    scope = scope_of({"a": u["a"][0]}, "layer")
    found = panels._in_batches(scope, u)[:, 0]
    np.testing.assert_allclose(found, [0] * 4 + [np.pi / 3] * 4, atol=1e-3)


def test_runs_of_one_name_are_told_apart(tmp_path):
    twice = [tmp_path / part / "same" for part in ("a", "b")]
    assert short_names(twice) == list(map(str, twice))
    assert short_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]


# What it refuses ---------------------------------------------------------------


def refusal(command, capsys, *arguments):
    assert command(*arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("figures.py: ") and message.count("\n") == 1
    return message


def test_unknown_figure_is_named_with_those_there_are(runs, command, capsys):
    message = refusal(command, capsys, "--figure=12", runs / "l2f")
    assert "--figure ('12') must be one of 2, 3, 4, 5, 6, 2a" in message


def test_gammas_of_maml_are_refused(runs, command, capsys):
    message = refusal(command, capsys, "--figure=3d", runs / "maml")
    assert f"`transform.name` is 'identity' in {runs / 'maml'}" in message


def test_foreign_folders_are_refused(tmp_path, command, capsys):
    message = refusal(command, capsys, "--figure=2", tmp_path)
    assert "it has no run.json" in message
    flaws = {
        "no JSON": "it is no JSON",
        "[]": "it is of type list, not dict",
        "{}": "`protocol` is of type NoneType, not str",
        '{"protocol": "", "config": {"problem": "classification"}}': "`config.seed` is",
    }
    for text, flaw in flaws.items():
        (tmp_path / "run.json").write_text(text)
        message = refusal(command, capsys, "--figure=2", tmp_path)
        assert f"run.json is not the record of a run: {flaw}" in message


def test_run_of_another_problem_is_refused(tmp_path, command, capsys):
    tiny.leave_record(tmp_path, sinusoid.get_config())
    message = refusal(command, capsys, "--figure=3a", tmp_path)
    assert f"{tmp_path} is a run of regression; figure 3a shows runs of clas" in message


def copied(run, folder):
    folder.mkdir()
    shutil.copy(run / "run.json", folder)
    return folder


def test_runs_of_different_tasks_are_refused(runs, tmp_path, command, capsys):
    other = copied(runs / "maml", tmp_path / "other")
    config_of(other, data_shots=5)
    message = refusal(command, capsys, "--figure=2", runs / "l2f", other)
    assert "not judged on the same tasks: `data.shots` is 1 in the one, 5" in message


def test_other_augmentation_is_no_other_task(runs, tmp_path, command, capsys):
    other = copied(runs / "maml", tmp_path / "other")
    config_of(other, data_augment=["flip"])
    message = refusal(command, capsys, "--figure=2", runs / "l2f", other)
    assert "other is unfinished" in message  # which is looked at next


def test_policies_of_different_worlds_are_refused(tmp_path, command, capsys):
    for name, variants in (("a", "maml,direction"), ("b", "maml,velocity")):
        tiny.leave_record(tmp_path / name, half_cheetah.get_config(variants))
    message = refusal(command, capsys, "--figure=5", tmp_path / "a", tmp_path / "b")
    assert "not judged on the same tasks: `env.goal` is 'direction'" in message


def test_a_network_without_an_inner_loop_is_refused(tmp_path, command, capsys):
    tiny.leave_record(tmp_path, tiny.get_config("protonet"))
    message = refusal(command, capsys, "--figure=2", tmp_path)
    assert "is of a prototypical network, which has no inner loop for" in message


def test_unfinished_runs_are_refused(runs, tmp_path, command, capsys):
    none = copied(runs / "maml", tmp_path / "none")
    message = refusal(command, capsys, "--figure=2", none)
    assert "none is unfinished: its last checkpoint is of step 0 of 6" in message
    (none / "checkpoints").symlink_to(runs / "maml" / "checkpoints")
    config_of(none, training_iterations=9)
    message = refusal(command, capsys, "--figure=2", none)
    assert "none is unfinished: its last checkpoint is of step 6 of 9" in message


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--tasks=1", "--tasks (1) must be at least 2"),
        ("--tasks=6", "--tasks (6) must be a multiple of 4 for conflict"),
        ("--out=a/b.png", "--out (a/b.png) must be a file in a folder that exists"),
        ("--out=a.json", "named *.png or *.pdf or *.svg"),
    ],
)
def test_wrong_options_are_refused(runs, command, capsys, argument, message):
    assert message in refusal(command, capsys, "--figure=3a", runs / "l2f", argument)


def test_a_number_of_tasks_is_refused_where_it_is_not_asked_for(
    tmp_path, command, capsys
):
    tiny.leave_record(tmp_path, half_cheetah.get_config("maml,direction"))
    message = refusal(command, capsys, "--figure=5", tmp_path, "--tasks=7")
    assert "--tasks (7): figure 5 has its own number" in message


def test_a_picture_does_not_replace_a_run(runs, command, capsys):
    out = f"--out={runs / 'l2f' / 'run.png'}"
    message = refusal(command, capsys, "--figure=3d", runs / "l2f", out)
    assert "run.png) would replace " in message and "run.json; choose" in message
