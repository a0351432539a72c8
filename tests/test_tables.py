"""Tables: cells are trained once, missing ones are said to be, mistakes are named."""

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.tables import TABLES, Cell, sinusoids
from experiments import cells, tables
from experiments.cells import Result, members, resize
from experiments.identity import GAINED, check_same, resolved
from experiments.locking import held, lock_of
from experiments.recording import read_metrics
from experiments.scores import START
from experiments.tables import chosen_cells
from experiments.tabulating import described, heading, markdown
from l2f_jax import storage
from l2f_jax.checkpoint import Checkpoints
from l2f_jax.problems import Score, build
from l2f_jax.storage import Unreadable
from tests import tiny

pytestmark = pytest.mark.mixed_dtypes  # Adam


MSE, SHARE = Score("mse", np.mean, limit=100), Score("accuracy", np.mean, True)


def result(*means, score=MSE, **others):
    """Two seeds, three tasks, one number of inner steps."""
    parts = {"last": means, **others}
    scores = {
        name: {1: np.array([[m - 1, m, m + 1] for m in values], float)}
        for name, values in parts.items()
    }
    return Result(scores, score, 1, 7, "one by one")


def cell(name, against="", paper=None):
    return Cell(name, None, against, paper or {})


def rows(text):
    return [line[2:-2].split(" | ") for line in text.splitlines()]


def test_a_row_says_what_was_measured():
    cells = [cell("a"), cell("b", "a", {1: 0.5})]
    results = {"a": result(2, 4), "b": result(1, 3)}
    found = {cell.name: described(results, cell) for cell in cells}
    last = found["b"]["after"]["1"]["last"]
    assert last["mean"] == 2 and last["seeds"] == [1, 3] and last["median"] == 2
    assert last["difference"] == (-1, 0) and last["differences"] == [(-1, 0)] * 2
    head, _, _, shown = rows(markdown(cells, found, MSE))
    shown = dict(zip(head, shown, strict=True))
    assert shown["last"].startswith("2.000 ± ") and shown["paper"] == "0.500"
    assert shown["difference"] == "-1.000 ± 0.000 from a"
    assert shown["of each seed"] == "-1.000 ± 0.000, -1.000 ± 0.000"
    assert shown["over seeds"] == "-1.000 ± 0.000"
    assert shown["diverged"] == "0.00 %"


def test_a_seed_that_fails_does_not_hide_in_a_mean():
    a, b = result(2, 4), result(0, 6)
    b.scores["last"][1][:1], b.scores["last"][1][1:] = -100, 105
    results = {"a": a, "b": b, "c": result(2, 4, 6)}
    last = described(results, cell("b", "a"))["after"]["1"]["last"]
    assert [mean for mean, _ in last["differences"]] == [-102, 101]
    assert abs(last["difference"][0]) < 1
    mean, half = last["over_seeds"]  # 12.706 is t of one degree of freedom
    assert mean == -0.5 and half == pytest.approx(12.706 * 101.5, rel=1e-4)
    last = described(results, cell("b", "c"))["after"]["1"]["last"]
    assert "difference" in last and not {"differences", "over_seeds"} & {*last}


def test_a_missing_cell_is_missing_and_no_number():
    found = {"a": described({"a": None}, cell("a"))}
    assert rows(markdown([cell("a")], found, MSE))[-1] == ["a", "", "missing"] + 7 * [
        ""
    ]


def test_a_task_that_diverges_shows():
    bad = result(2, 4)
    bad.scores["last"][1][0, 0] = np.nan
    last = described({"a": bad}, cell("a"))["after"]["1"]["last"]
    assert (
        np.isnan(last["mean"]) and last["diverged"] == 1 / 6 and last["median"] == 3.5
    )


def test_returns_above_100_are_no_divergence():
    found = {"a": described({"a": result(200, 300)}, cell("a"))}
    assert "diverged" not in markdown([cell("a")], found, Score("return", np.mean))


def test_shares_are_in_percent_after_the_trained_steps():
    a = result(0.5, 0.7, score=SHARE, ensemble=(0.75, 0.75))
    b = result(0.625, 0.825, score=SHARE, ensemble=(0.875, 0.875))
    for each in (a, b):  # the ensemble is judged after the trained steps alone
        each.scores["last"] = {0: 0 * each.scores["last"][1]} | each.scores["last"]
    cells = [cell("a"), cell("b", "a", {1: 0.6938})]
    found = {c.name: described({"a": a, "b": b}, c) for c in cells}
    head, _, _, shown = rows(markdown(cells, found, SHARE))
    shown = dict(zip(head, shown, strict=True))
    assert shown["steps"] == "1" and shown["last"].startswith("72.50 ± ")
    assert shown["seeds"] == "62.50 .. 82.50" and shown["paper"] == "69.38"
    assert shown["ensemble"].startswith("87.50 ± ")
    assert shown["difference"] == shown["its difference"] == "12.50 ± 0.00 from a"


def test_the_start_of_a_policy_is_a_row():
    a = result(2, 4, score=Score("return", np.mean))
    last = a.scores["last"][1]
    points = {"a": {0: last, 1: last}, "b": {START: last, 1: last}}
    b = cell("b", "a", {1: 5.0})
    results = {key: a._replace(scores={"last": x}) for key, x in points.items()}
    _, _, start, after = rows(markdown([b], {"b": described(results, b)}, a.score))
    assert start[:2] == ["b", "start"] and start[4:] == [""] * 4  # the other has none
    assert after[4] == "0.000 ± 0.000 from a" and after[7] == "5.000"


def test_the_heading_says_what_the_numbers_are_of():
    found = {"a": result(2, 4), "b": None, "c": result(1, 3)._replace(iterations=9)}
    text = heading("4", "icons", found, "of theirs")
    assert text == (
        "Table 4 on icons: mse, mean ± 95 % interval over 3 test tasks of the mean of "
        "2 seeds (least .. most of a seed; intervals over seeds by Student's t); 7 to "
        "9 iterations; one by one. A task diverges above 100. Paper: of theirs."
    )


def test_the_heading_tells_cells_of_different_protocols_apart():
    one = result(2, 4)
    found = {"a": one, "b": one._replace(protocol="by twos"), "c": one, "d": None}
    text = heading("4", "icons", found, "of theirs")
    assert "; a, c: one by one; b: by twos. A task" in text


PAPER = {
    "1": {
        "conv4_1shot_maml": 48.70,
        "conv4_1shot_l2f": 52.10,
        "maml": 63.11,
        "l2f": 69.38,
        "resnet12_1shot_maml": 51.03,
        "resnet12_1shot_l2f": 57.48,
        "resnet12_5shot_maml": 68.26,
        "resnet12_5shot_l2f": 74.68,
    },
    "2": {
        "conv4_1shot_maml": 49.06,
        "conv4_1shot_l2f": 54.40,
        "maml": 67.48,
        "l2f": 73.34,
        "resnet12_1shot_maml": 58.58,
        "resnet12_1shot_l2f": 63.94,
        "resnet12_5shot_maml": 71.24,
        "resnet12_5shot_l2f": 77.61,
    },
    "3": {
        "maml_1_steps": 56.93,
        "maml_2_steps": 55.63,
        "maml_3_steps": 58.79,
        "maml_4_steps": 62.72,
        "maml": 63.94,
        "maml_6_steps": 64.54,
        "l2f_1_steps": 68.16,
        "l2f_2_steps": 66.85,
        "l2f_3_steps": 68.61,
        "l2f_4_steps": 68.66,
        "l2f": 69.38,
    },
    "4": {
        "maml": 63.94,
        "free_parameter": 64.7,
        "free_filter": 65.35,
        "free_layer": 68.49,
        "free_network": 67.84,
        "l2f": 69.38,
    },
    "5": {"maml": 63.94, "protonet": None, "l2f_prototypes": 68.73, "l2f": 69.48},
    "6": {"maml": 63.94, "affine": 66.22, "unbounded": 67.56, "l2f": 69.38},
}


@pytest.mark.parametrize("table", PAPER)
def test_the_paper_s_numbers_are_those_that_it_prints(table):
    found = {
        cell.name: round(100 * cell.paper[cell.config.learner.steps], 2)
        if cell.paper
        else None
        for cell in chosen_cells(table, "", "*")
    }
    assert found == PAPER[table]


def test_what_does_not_exist_is_named():
    with pytest.raises(ValueError, match="--table .'12'. must be one of 1, 2, 3"):
        chosen_cells("12", "", "*")
    with pytest.raises(ValueError, match="--cells .'k7'. matches none of .*k5_maml"):
        chosen_cells("7", "", "k7")
    with pytest.raises(ValueError, match="--data .'moon'.* has no moon.py"):
        chosen_cells("3", "moon", "*")
    with pytest.raises(ValueError, match="--data .'icons'.*: Table 7 makes its own"):
        chosen_cells("7", "icons", "*")
    with pytest.raises(ValueError, match="--data .'icons'.*: this table has no images"):
        chosen_cells("navigation", "icons", "*")


def test_data_may_not_contradict_a_cell():
    with pytest.raises(ValueError, match="--data .'icons:1shot'.*5shot"):
        chosen_cells("1", "icons:1shot", "*")
    with pytest.raises(ValueError, match="--data .'icons:maml'.*l2f"):
        chosen_cells("4", "icons:maml", "*")


def test_a_bank_for_what_reads_none_is_refused(tmp_path, monkeypatch):
    arguments = ["--table=7", "--bank=x", f"--run={tmp_path / 'runs'}"]
    monkeypatch.setattr("sys.argv", ["tables.py", *arguments])
    with pytest.raises(ValueError, match="--bank .x.: one_step/k5_maml reads no image"):
        tables.main()
    assert not (tmp_path / "runs").exists()

    arguments = ["--table=navigation", "--bank=x", f"--run={tmp_path / 'runs'}"]
    monkeypatch.setattr("sys.argv", ["tables.py", *arguments])
    with pytest.raises(ValueError, match="--bank .x.: maml reads no image bank"):
        tables.main()


def options(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["tables.py", *arguments])
    return tables.parsed()


def test_runs_have_a_folder_for_the_data_or_the_table(monkeypatch):
    assert options(monkeypatch, "--table=7").run == Path("runs/tables/7")
    images = options(monkeypatch, "--table=4", "--data=icons:1shot")
    assert images.run == Path("runs/tables/icons_1shot")
    folders = [options(monkeypatch, f"--table={table}").run for table in "34"]
    assert folders == [Path("runs/tables/mini-ImageNet")] * 2  # they share cells
    assert options(monkeypatch, "--table=7", "--run=a").run == Path("a")


def test_checkpoints_for_figures_are_kept_if_asked(monkeypatch):
    (cell,) = chosen_cells("4", "icons", "l2f")
    tables.adjust(cell, options(monkeypatch, "--table=4"))
    assert cell.config.training.keep_every == 0
    tables.adjust(cell, options(monkeypatch, "--table=4", "--keep_every=2"))
    assert cell.config.training.keep_every == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --table"),
        (
            ["--table=4", "--budget=many"],
            "argument --budget: invalid int value: 'many'",
        ),
        (["--table=4", "--tabel=4"], "unrecognized arguments: --tabel=4"),
        (["--table=4", "--keep_every=0"], "--keep_every .0. must be at least 1"),
    ],
)
def test_a_mistake_on_the_command_line_is_a_sentence(monkeypatch, arguments, message):
    with pytest.raises(ValueError, match=message):
        options(monkeypatch, *arguments)


def test_table_7_has_every_cell_of_the_paper_in_two_settings():
    cells = chosen_cells("7", "", "*")
    assert len(cells) == 12
    assert sum(len(cell.paper) for cell in cells) == 2 * 18


@pytest.mark.parametrize("table", ["7_open", "navigation", "direction", "velocity"])
def test_cells_without_images_build_and_differ(table):
    found = chosen_cells(table, "", "*")
    names = [cell.name for cell in found]
    assert len({*names}) == len(names)
    assert {cell.against for cell in found} - {""} <= {*names}
    assert len({cell.config.to_json() for cell in found}) == len(found)
    for cell in found:
        experiment = build(cell.config)
        assert {*cell.paper} <= {*experiment.points}


@pytest.mark.parametrize("table", [*PAPER, "rate"])
def test_cells_differ_and_compare_with_one_that_is_there(table):
    found = chosen_cells(table, "icons", "*")
    names = [cell.name for cell in found]
    assert len({*names}) == len(names)
    assert {cell.against for cell in found} - {""} <= {*names}
    configs = {(cell.config.to_json(), cell.matched) for cell in found}
    assert len(configs) == len(found)
    for cell in found:
        assert set(cell.paper) <= {cell.config.learner.steps}


def test_a_cell_is_the_same_run_in_every_table():
    found = {}
    for table in ("3", "4", "6", "rate"):
        for cell in chosen_cells(table, "icons:1shot", "*"):
            assert found.setdefault(cell.name, cell.config) == cell.config


def test_a_budget_keeps_the_share_of_the_warm_up():
    for name in ("l2f", "maml"):
        (cell,) = chosen_cells("4", "cifar_fs", name)
        training = cell.config.training
        resize(cell.config, 1_000)
        # Of MAML's 100 epochs, 11 are first order: 1.1 of 10.
        assert (training.iterations, training.iterations_per_epoch) == (1_000, 100)
        assert training.first_order_epochs == 1


def test_seeds_are_runs_of_their_own_unless_they_train_as_one(tmp_path):
    (cell,) = chosen_cells("4", "icons", "l2f")
    runs = members(cell, tmp_path, 2)
    assert [run.name for run in runs] == ["seed_0", "seed_1"]
    assert [config.seed for config in runs.values()] == [0, 1]
    (cell,) = chosen_cells("7", "", "one_step/k5_l2f")
    ((run, config),) = members(cell, tmp_path, 3).items()
    assert run == tmp_path / "one_step" / "k5_l2f" and config.training.seeds == 3


def test_a_run_of_another_config_is_no_cell(tmp_path):
    (a,) = chosen_cells("4", "icons", "maml")
    (b,) = chosen_cells("4", "cifar_fs", "maml")
    run = tmp_path / "maml" / "seed_0"
    tiny.leave_record(run, a.config)
    assert cells.judge({run: a.config}) is None  # it has no checkpoint
    with pytest.raises(ValueError, match="holds a run with data.bank = 'icons', not"):
        cells.judge({run: b.config})
    (run / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="run.json is not the record of a run"):
        cells.judge({run: a.config})


def test_a_record_may_lack_keys_that_configs_have_gained(tmp_path):
    (cell,) = chosen_cells("4", "icons", "l2f")
    config = resolved(cell.config)
    for key in GAINED:
        *sections, last = key.split(".")
        del functools.reduce(dict.__getitem__, sections, config)[last]
    tiny.leave_record(tmp_path, ConfigDict(config))
    check_same(tmp_path, cell.config)
    cell.config.model.norm.learn_scale = False
    with pytest.raises(ValueError, match="learn_scale = 'absent', not False"):
        check_same(tmp_path, cell.config)


@pytest.mark.parametrize(
    "error",
    [
        FloatingPointError("outer/loss is not finite at step 3"),
        Unreadable("the state in 'checkpoints/3' cannot be read"),
    ],
)
def test_a_cell_that_fails_is_said_to_and_the_next_one_trained(
    tmp_path, monkeypatch, capsys, error
):
    def fail(config, run):
        if run.name == "a":
            raise error
        trained.append(run)
        return True

    trained, tested = [], []
    (cell,) = chosen_cells("4", "icons", "maml")
    monkeypatch.setattr(cells, "train", fail)
    monkeypatch.setattr(cells, "judged", lambda run, tasks: tested.append((run, tasks)))
    runs = {tmp_path / name: cell.config for name in "ab"}
    assert cells.run_missing(runs)
    assert trained == [tmp_path / "b"] and tested == [(tmp_path / "b", 600)]
    assert f"a: {error}" in capsys.readouterr().err
    assert cells.judge(runs) is None


def test_a_run_is_taken_by_one_process_at_a_time(tmp_path, monkeypatch):
    lock = lock_of(tmp_path / "run")
    with held(lock) as first, held(lock) as second:
        assert first and not second
        (cell,) = chosen_cells("4", "icons", "l2f")
        monkeypatch.setattr(cells, "train", lambda *_: pytest.fail("trained"))
        assert cells.run_missing({tmp_path / "run": cell.config})
    with held(lock) as again:
        assert again


def complete(run, config):
    """Leave behind what says that a run is complete."""
    tiny.leave_record(run, config)
    with Checkpoints(run / "checkpoints") as saved:
        saved.save(config.training.iterations, {"w": np.zeros(1)})
        saved.rank(0.0)


def test_a_cell_that_cannot_be_read_is_said_to_be_missing(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(storage, "DELETION_S", 0.0)
    (cell,) = chosen_cells("4", "icons", "maml")
    complete(tmp_path, cell.config)
    (record,) = tmp_path.glob("checkpoints/*/record/metadata")
    record.write_text("")
    assert cells.judge({tmp_path: cell.config}) is None
    assert "the record in" in capsys.readouterr().err


def test_a_cell_waits_for_the_network_that_it_builds_on(tmp_path, monkeypatch):
    (cell,) = chosen_cells("5", "icons", "l2f_prototypes")
    ((run, config),) = members(cell, tmp_path, 1).items()
    trained = threading.Event()
    monkeypatch.setattr(cells, "train", lambda *_: trained.set() or True)
    monkeypatch.setattr(cells, "judged", lambda *_, **__: None)
    with held(lock_of(tmp_path / "protonet" / "seed_0")):
        other = threading.Thread(target=cells.run_missing, args=({run: config},))
        other.start()
        assert not trained.wait(0.5)
        complete(tmp_path / "protonet" / "seed_0", config)
    other.join(10)
    assert trained.is_set()


@pytest.mark.parametrize(
    ("table", "name", "source"),
    [("5", "l2f_prototypes", "protonet"), ("rate", "maml_matched", "l2f")],
)
def test_a_run_whose_source_is_not_complete_is_said_to_be_missing(
    tmp_path, monkeypatch, capsys, table, name, source
):
    (cell,) = chosen_cells(table, "icons", name)
    runs = members(cell, tmp_path, 2)
    monkeypatch.setattr(cells, "train", lambda *_: pytest.fail("trained"))
    assert cells.run_missing(runs, cell.matched)
    assert not list(tmp_path.iterdir())  # nor is a lock
    first, second = capsys.readouterr().err.splitlines()
    assert f"{name}/seed_0 is not trained: " in first
    assert f"{source}/seed_0 is not a run directory" in first
    assert f"{source}/seed_1 is not a run directory" in second
    assert cells.judge(runs, cell.matched) is None

    # The second seed's has a record, but diverged before its first checkpoint.
    complete(tmp_path / source / "seed_1", cell.config)
    shutil.rmtree(tmp_path / source / "seed_1" / "checkpoints")
    assert cells.run_missing(runs, cell.matched)
    _, second = capsys.readouterr().err.splitlines()
    assert "seed_1 is unfinished: its last checkpoint is of step 0 of " in second


def test_a_run_of_other_rates_is_no_matched_cell(tmp_path):
    (cell,) = chosen_cells("rate", "icons", "maml_matched")
    ((run, config),) = members(cell, tmp_path, 1).items()
    record = tiny.leave_record(run, config)
    for rates in ({}, {"rates": {}}):  # older records have no such key
        del record["config"]["learner"]["rates"]
        record["config"]["learner"] |= rates
        (run / "run.json").write_text(json.dumps(record))
        for use in (cells.run_missing, cells.judge):
            with pytest.raises(ValueError, match="holds a run with learner.rates"):
                use({run: config}, cell.matched)
        record["config"]["learner"].setdefault("rates")


def test_cells_are_trained_once_and_judged(tmp_path, monkeypatch, capsys):
    def small(data):
        for cell in sinusoids(data):
            if cell.name.startswith("one_step/k5"):
                config = cell.config
                config.model.hidden = (4,)
                config.training.update({"iterations": 4, "iterations_per_epoch": 4})
                config.training.update({"tasks": 2, "seeds": 2})
                config.evaluation.update({"validation_tasks": 3, "test_tasks": 5})
                yield cell

    table = TABLES["7"]._replace(cells=small)
    monkeypatch.setattr(tables, "TABLES", {"7": table})
    monkeypatch.setattr(tables.launch, "set_up", lambda *_: None)
    arguments = ["tables.py", "--table=7", f"--run={tmp_path}"]
    monkeypatch.setattr("sys.argv", [*arguments, "--print_only"])
    tables.main()
    assert capsys.readouterr().out.count("missing") == 2
    monkeypatch.setattr("sys.argv", arguments)
    tables.main()
    first = (tmp_path / "table_7.md").read_text()
    assert "missing" not in first and "one_step/k5_l2f | 10 |" in first
    metrics = tmp_path / "one_step" / "k5_maml" / "metrics.jsonl"
    before = metrics.read_bytes()
    tables.main()
    assert metrics.read_bytes() == before
    assert (tmp_path / "table_7.md").read_text() == first


# The command, with fewer tasks to test on.
TABLES_OF_FEW_TASKS = """
from configs.regression import sinusoid
from experiments import launch, tables

whole = sinusoid.get_config

def get_config(arg):
    config = whole(arg)
    config.evaluation.update({"validation_tasks": 25, "test_tasks": 50})
    return config

sinusoid.get_config = get_config
launch.guard(tables.main)
"""


@pytest.mark.slow  # starts many programs; .ci/run has it
def test_a_killed_table_goes_on_where_it_was(tmp_path):
    root = Path(__file__).parent.parent
    budget = 600

    def written(run):
        paths = (run / "checkpoints").rglob("*")
        times = {path: path.stat().st_mtime_ns for path in paths}
        return (run / "metrics.jsonl").read_bytes(), times

    def start(argument="--cells=one_step/k5*"):
        return subprocess.Popen(
            [
                *(sys.executable, "-c", TABLES_OF_FEW_TASKS, "--table=7", "--seeds=1"),
                *(argument, f"--budget={budget}", f"--run={tmp_path}"),
            ],
            cwd=root,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XDG_CACHE_HOME": str(root / ".jax_cache"),
            },
            stderr=subprocess.PIPE,
            text=True,
        )

    first, second = tmp_path / "one_step" / "k5_maml", tmp_path / "one_step" / "k5_l2f"
    with start() as process:
        while not read_metrics(second):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.kill()
    before = written(first)
    trained = read_metrics(second)
    assert read_metrics(first)[-1]["step"] == budget > trained[-1]["step"]

    # Two at once: one of them trains what is left, the other finds it taken or done.
    with start() as one, start() as other:
        for process in (one, other):
            _, message = process.communicate(timeout=300)
            assert process.returncode == 0, message
    assert written(first) == before
    metrics = read_metrics(second)
    assert metrics[: len(trained)] == trained
    assert [row["step"] for row in metrics] == [
        row["step"] for row in read_metrics(first)
    ]
    assert not (tmp_path / "table_7.json").exists()  # some cells are not the table
    with start("--print_only") as process:
        process.communicate(timeout=300)
    table = json.loads((tmp_path / "table_7.json").read_text())
    found = [cell for cell in table["cells"].values() if cell]
    assert [cell["iterations"] for cell in found] == [budget] * 2
