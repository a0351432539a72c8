"""What programs leave behind is JSON that every reader takes, and never half a file."""

import json
import math

import numpy as np
import pytest

from experiments.plots import grid
from experiments.recording import read_metrics, write_json


def refuse(name):
    raise ValueError(f"{name} is no JSON")


def test_numbers_that_json_lacks_are_null(tmp_path):
    content = {"a": [1.5, math.nan], "b": ({"c": -math.inf}, np.float64(math.inf), 2)}
    write_json(tmp_path / "a.json", content)
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert found == {"a": [1.5, None], "b": [{"c": None}, None, 2]}


def test_null_in_metrics_is_no_number(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "x": null}\n{"step": 2')
    ((step, x),) = [record.values() for record in read_metrics(tmp_path)]
    assert step == 1 and math.isnan(x)


def test_a_picture_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="Unknown symbol"), grid(1, path) as (axes,):
        axes.set_title(r"$\nothing$")
    assert path.read_bytes() == b"old"
    with grid(1, path):
        pass
    assert path.read_bytes()[1:4] == b"PNG"
