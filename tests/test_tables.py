"""Tables: cells are trained once, missing ones are said to be, mistakes are named."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from configs.tables import TABLES, Cell, sinusoids
from experiments import cells, tables
from experiments.cells import Result, members, resize, taken
from experiments.recording import read_metrics
from experiments.tables import chosen_cells, described, markdown
from l2f_jax.problems import Score

pytestmark = pytest.mark.mixed_dtypes  # Adam


def result(*means):
    """Two seeds, three tasks, one number of inner steps."""
    scores = np.array([[m - 1, m, m + 1] for m in means], float)
    return Result(scores[:, :, None], (1,), Score("mse", np.mean), 1, 7)


def test_a_row_says_what_was_measured():
    cells = [Cell("a", None, "", {}), Cell("b", None, "a", {1: 0.5})]
    results = {"a": result(2, 4), "b": result(1, 3)}
    found = {cell.name: described(results, cell) for cell in cells}
    row = found["b"]["after"]["1"]
    assert row["mean"] == 2 and row["seeds"] == [1, 3] and row["median"] == 2
    assert row["difference"] == (-1, 0)
    last = markdown(cells, found, share=False).splitlines()[-1]
    assert last.startswith("| b | 1 | 2.000 ± ") and "| 0.5 | -1.000 ± 0.000 |" in last


def test_a_missing_cell_is_missing_and_no_number():
    cell = Cell("a", None, "", {})
    text = markdown([cell], {"a": described({"a": None}, cell)}, share=False)
    assert text.endswith("| a |  | missing |  |  |  |  |  |")


def test_a_task_that_diverges_shows():
    bad = result(2, 4)
    bad.scores[0, 0, 0] = np.nan
    row = described({"a": bad}, Cell("a", None, "", {}))["after"]["1"]
    assert np.isnan(row["mean"]) and row["above_100"] == 1 / 6 and row["median"] == 3.5


def test_shares_are_in_percent_after_the_trained_steps():
    shares = Result(
        np.array([[[0.2, 0.5], [0.2, 0.7]]]), (0, 1), Score("x", np.mean, True), 1, 7
    )
    cell = Cell("a", None, "", {1: 0.6938})
    text = markdown([cell], {"a": described({"a": shares}, cell)}, share=True)
    assert text.splitlines()[-1] == "| a | 1 | 60.00 ± 19.60 | 60.00 | 69.38 |  |"


def test_what_does_not_exist_is_named():
    with pytest.raises(ValueError, match="--table .'12'. must be one of 1, 2, 3"):
        chosen_cells("12", "", "*")
    with pytest.raises(ValueError, match="--cells .'k7'. matches none of .*k5_maml"):
        chosen_cells("7", "", "k7")
    with pytest.raises(ValueError, match="--data .'moon'.* has no moon.py"):
        chosen_cells("3", "moon", "*")
    with pytest.raises(ValueError, match="--data .'icons'.*: Table 7 makes its own"):
        chosen_cells("7", "icons", "*")


def test_a_bank_for_what_reads_none_is_refused(tmp_path, monkeypatch):
    arguments = ["--table=7", "--bank=x", f"--run={tmp_path / 'runs'}"]
    monkeypatch.setattr("sys.argv", ["tables.py", *arguments])
    with pytest.raises(ValueError, match="--bank .x.: one_step/k5_maml reads no image"):
        tables.main()
    assert not (tmp_path / "runs").exists()


def test_table_7_has_every_cell_of_the_paper_in_two_settings():
    cells = chosen_cells("7", "", "*")
    assert len(cells) == 12
    assert sum(len(cell.paper) for cell in cells) == 2 * 18


@pytest.mark.parametrize("table", [t for t in TABLES if t != "7"])
def test_cells_differ_and_compare_with_one_that_is_there(table):
    found = chosen_cells(table, "icons", "*")
    names = [cell.name for cell in found]
    assert len({*names}) == len(names)
    assert {cell.against for cell in found} - {""} <= {*names}
    configs = {cell.config.to_json() for cell in found}
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


def test_a_run_is_taken_by_one_process_at_a_time(tmp_path, monkeypatch):
    with taken(tmp_path / "run") as first, taken(tmp_path / "run") as second:
        assert first and not second
        (cell,) = chosen_cells("4", "icons", "l2f")
        monkeypatch.setattr(cells, "train", lambda *_: pytest.fail("trained"))
        assert cells.train_missing({tmp_path / "run": cell.config})
    with taken(tmp_path / "run") as again:
        assert again


def test_a_cell_waits_for_the_network_that_it_builds_on(tmp_path, monkeypatch):
    (cell,) = chosen_cells("5", "icons", "l2f_prototypes")
    ((run, config),) = members(cell, tmp_path, 1).items()
    trained = threading.Event()
    monkeypatch.setattr(cells, "train", lambda *_: trained.set() or True)
    with taken(tmp_path / "protonet" / "seed_0"):
        other = threading.Thread(target=cells.train_missing, args=({run: config},))
        other.start()
        assert not trained.wait(0.5)
    other.join(10)
    assert trained.is_set()


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

    monkeypatch.setattr(tables, "TABLES", {"7": small})
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


def test_a_killed_table_goes_on_where_it_was(tmp_path):
    root = Path(__file__).parent.parent
    budget = 2_000

    def written(run):
        paths = (run / "checkpoints").rglob("*")
        times = {path: path.stat().st_mtime_ns for path in paths}
        return (run / "metrics.jsonl").read_bytes(), times

    def start():
        return subprocess.Popen(
            [
                *(sys.executable, "experiments/tables.py", "--table=7", "--seeds=1"),
                *("--cells=one_step/k5*", f"--budget={budget}", f"--run={tmp_path}"),
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
    table = json.loads((tmp_path / "table_7.json").read_text())
    assert {cell["iterations"] for cell in table["cells"].values()} == {budget}
