"""From a config to an Experiment."""

from collections.abc import Mapping
from typing import Any

from l2f_jax.problems.classification import classification
from l2f_jax.problems.experiment import Experiment, Score
from l2f_jax.problems.regression import regression
from l2f_jax.problems.reinforcement import reinforcement
from l2f_jax.problems.sections import call

__all__ = ["Experiment", "Score", "build"]

PROBLEMS = {
    "classification": classification,
    "regression": regression,
    "reinforcement": reinforcement,
}


def build(config: Mapping[str, Any]) -> Experiment:
    """Build the experiment that a config describes.

    Raises:
      ValueError: one sentence naming the key, for anything wrong in the config.
    """
    sections = dict(config)
    problem = sections.pop("problem", None)
    seed = sections.pop("seed", 0)  # of Experiment.init
    if seed < 0:
        raise ValueError(f"`seed` ({seed}) must be at least 0")
    if problem not in PROBLEMS:
        raise ValueError(
            f"`problem` ({problem!r}) must be one of {', '.join(PROBLEMS)}"
        )
    return call(PROBLEMS[problem], sections, "")
