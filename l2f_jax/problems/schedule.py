"""How long a run is, how many tasks it takes, which program runs when."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from l2f_jax.outer import REDUCTIONS
from l2f_jax.problems.sections import check_least


class Program(NamedTuple):
    """What distinguishes one compiled training step of a run from another."""

    first_order: bool
    multi_step: bool


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The `training` section of a config.

    iterations: meta-iterations of a run.
    iterations_per_epoch: how often it is validated and saved.
    iterations_per_dispatch: run by one call of the compiled step.
    tasks: the meta-batch, over all devices together: as many as can share it evenly.
    reduction: of the tasks' losses; "sum" (the official L2F code) or "mean".
    order: 2 differentiates through the inner steps, 1 never does (first-order MAML).
    first_order_epochs: epochs at the start that are first order whatever `order`.
    multi_step_epochs: epochs at the start that use the multi-step loss, its weights
      moving to the last step over them (MAML++); 0 uses the query loss throughout.
    task_map: "map", "vmap" or "auto", see `backend.task_map`.
    cpu_devices: see `backend.cpu_devices`; only what starts a run reads it.
    seed: of the training episodes; None is the run's own, which its parameters have.
    keep_every: keep the checkpoint of every n-th epoch besides the newest and the best,
      for figures over training; 0 keeps none for that.
    """

    iterations: int
    iterations_per_epoch: int
    iterations_per_dispatch: int
    tasks: int
    reduction: str
    order: int
    first_order_epochs: int
    multi_step_epochs: int
    task_map: str
    cpu_devices: int = 0
    keep_every: int = 0
    seed: int | None = None

    def __post_init__(self):
        least = {
            "iterations": 1,
            "iterations_per_epoch": 1,
            "iterations_per_dispatch": 1,
            "tasks": 1,
            "first_order_epochs": 0,
            "multi_step_epochs": 0,
            "cpu_devices": 0,
            "keep_every": 0,
        }
        if self.seed is not None:
            least["seed"] = 0
        check_least("training", vars(self), least)
        if self.order not in (1, 2):
            raise ValueError(f"`training.order` ({self.order}) must be 1 or 2")
        if self.reduction not in REDUCTIONS:
            raise ValueError(
                f"`training.reduction` ({self.reduction!r}) must be one of "
                f"{', '.join(REDUCTIONS)}"
            )

    @property
    def epochs(self) -> int:
        """Epochs of a run, the last one possibly cut short."""
        return -(-self.iterations // self.iterations_per_epoch)

    def program(self, step: int) -> Program:
        """Return what runs at an iteration."""
        epoch = step // self.iterations_per_epoch
        return Program(
            first_order=self.order == 1 or epoch < self.first_order_epochs,
            multi_step=epoch < self.multi_step_epochs,
        )

    def boundary(self, step: int) -> int:
        """Return the first iteration after `step` that begins an epoch or ends the run.

        Programs change only there, so no dispatch that stops at it crosses a change.
        """
        epoch = step // self.iterations_per_epoch + 1
        return min(epoch * self.iterations_per_epoch, self.iterations)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The `evaluation` section of a config.

    validation_tasks: fixed tasks of the split "val" after every epoch.
    test_tasks: fixed tasks of the split "test" in `experiments/evaluate.py`.
    ensemble: how many of the best checkpoints are kept, and averaged at test.
    seed: of the fixed tasks.
    """

    validation_tasks: int
    test_tasks: int
    ensemble: int
    seed: int = 0

    def __post_init__(self):
        least = dict.fromkeys(vars(self), 1) | {"seed": 0}
        check_least("evaluation", vars(self), least)


def points_to_test(points: Sequence[int], steps: int) -> tuple[int, ...]:
    """Return `evaluation.points`, after how many inner steps tests predict, checked."""
    points = tuple(points)
    counts = [p for p in points if isinstance(p, int) and p >= 0]
    if points != (*sorted({*counts}),) or steps not in points:
        raise ValueError(
            f"`evaluation.points` {points} must be increasing numbers of inner steps, "
            f"at least 0, with `learner.steps` ({steps}) among them"
        )
    return points
