"""Tables: cells are trained once, missing ones are said to be, mistakes are named."""

import numpy as np
import pytest

from experiments import tables
from experiments.tables import Cell, Result, chosen_cells, described, markdown

pytestmark = pytest.mark.mixed_dtypes  # Adam


def result(*means):
    """Two seeds, three tasks, one number of inner steps."""
    scores = np.array([[m - 1, m, m + 1] for m in means], float)
    return Result(scores[:, :, None], (1,), 7)


def test_a_row_says_what_was_measured():
    cells = [Cell("a", None, "", {}), Cell("b", None, "a", {1: 0.5})]
    results = {"a": result(2, 4), "b": result(1, 3)}
    found = {cell.name: described(results, cell) for cell in cells}
    row = found["b"]["after"]["1"]
    assert row["mean"] == 2 and row["seeds"] == [1, 3] and row["median"] == 2
    assert row["difference"] == (-1, 0)
    last = markdown(cells, found).splitlines()[-1]
    assert last.startswith("| b | 1 | 2.000 ± ") and "| 0.5 | -1.000 ± 0.000 |" in last


def test_a_missing_cell_is_missing_and_no_number():
    cell = Cell("a", None, "", {})
    assert markdown([cell], {"a": described({"a": None}, cell)}).endswith(
        "| a | | missing | | | | | |"
    )


def test_a_task_that_diverges_shows():
    bad = result(2, 4)
    bad.scores[0, 0, 0] = np.nan
    row = described({"a": bad}, Cell("a", None, "", {}))["after"]["1"]
    assert np.isnan(row["mean"]) and row["above_100"] == 1 / 6 and row["median"] == 3.5


def test_unknown_tables_and_cells_are_named():
    with pytest.raises(ValueError, match="--table .'12'. must be one of 7"):
        chosen_cells("12", "*")
    with pytest.raises(ValueError, match="--cells .'k7'. matches none of .*k5_maml"):
        chosen_cells("7", "k7")


def test_table_7_has_every_cell_of_the_paper_in_two_settings():
    cells = chosen_cells("7", "*")
    assert len(cells) == 12
    assert sum(len(cell.paper) for cell in cells) == 2 * 18
    names = {cell.name for cell in cells}
    assert {cell.against for cell in cells} - {""} <= names


def test_cells_are_trained_once_and_judged(tmp_path, monkeypatch, capsys):
    def small():
        for cell in tables.table_7():
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
    first = (tmp_path / "table.md").read_text()
    assert "missing" not in first and "one_step/k5_l2f | 10 |" in first
    metrics = tmp_path / "one_step" / "k5_maml" / "metrics.jsonl"
    before = metrics.read_bytes()
    tables.main()
    assert metrics.read_bytes() == before
    assert (tmp_path / "table.md").read_text() == first
