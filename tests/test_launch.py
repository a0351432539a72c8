"""What every entry point does first."""

import pytest

from experiments import launch
from experiments.launch import PROCESSES, processes


def test_one_process_needs_no_variable():
    assert processes({"SLURM_NTASKS": "4"}) is None


def test_several_processes_are_told_by_three_variables():
    told = dict(zip(PROCESSES, ("host:1234", "2", "1"), strict=True))
    assert processes(told) == ("host:1234", 2, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("host:1", None, "0"), "JAX_NUM_PROCESSES is not set"),
        ((None, "2", "0"), "JAX_COORDINATOR_ADDRESS is not set"),
        (("host:1", "two", "0"), r"JAX_NUM_PROCESSES \('two'\) must be an integer"),
        (("host:1", "2", "2"), r"JAX_PROCESS_ID \(2\) must be less than 2"),
    ],
)
def test_variables_that_tell_no_processes_are_refused(values, message):
    told = {k: v for k, v in zip(PROCESSES, values, strict=True) if v is not None}
    with pytest.raises(ValueError, match=message):
        processes(told)


@pytest.mark.parametrize(
    "arguments", [["--config=nope.py:l2f"], ["--config", "nope.py"]]
)
def test_a_config_that_is_no_file_is_refused(arguments):
    with pytest.raises(ValueError, match=r"--config \(nope.py\) must be a file"):
        launch._parse(["train.py", *arguments])
