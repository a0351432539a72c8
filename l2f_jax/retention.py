"""Which saved steps of a run are kept, and why: tables without files."""

import math
from typing import NamedTuple


class Kept(NamedTuple):
    """The steps to keep.

    best: (step, score), best first; of equals the later first. regular: those kept for
    their number. ranked: whether the newest has its score. previous: while it has not,
    the step before.
    """

    best: list[tuple[int, float]] = []
    regular: list[int] = []
    previous: list[int] = []
    ranked: bool = True

    @property
    def steps(self) -> set[int]:
        return {*(step for step, _ in self.best), *self.regular, *self.previous}

    def with_step(self, step: int, newest: int | None, every: int) -> "Kept":
        """Return the tables when a step is saved after the `newest` of before.

        It is kept for its number if that is a multiple of `every`; 0: never.
        """
        regular = [step] if every and step % every == 0 else []
        return self._replace(
            regular=[*self.regular, *regular],
            previous=[] if newest is None else [newest],
            ranked=False,
        )

    def with_score(self, step: int, score: float, count: int | None) -> "Kept":
        """Return the tables when the newest step has its score: the best `count`."""
        if not math.isfinite(score):
            raise ValueError(f"`score` ({score}) of step {step} must be finite")
        table = [*self.best, (step, score)]
        best = sorted(table, key=lambda entry: (entry[1], entry[0]), reverse=True)
        return self._replace(best=best[:count], previous=[], ranked=True)

    def among(self, saved: set[int], count: int | None) -> "Kept":
        """Return the tables of the steps that are there, at most `count` best ones."""
        best = [(step, score) for step, score in self.best if step in saved][:count]
        regular, previous = (
            [step for step in steps if step in saved]
            for steps in (self.regular, self.previous)
        )
        return Kept(best, regular, [] if self.ranked else previous, self.ranked)
