"""The paper's figures, from the checkpoints of complete runs.

    python experiments/figures.py --figure=3 runs/icons/maml runs/icons/l2f
    python experiments/figures.py --figure=3d runs/icons/l2f --out=gammas.png

Draws a figure with all its panels, or one panel alone; the numbers go beside the
picture, as JSON. Figures 2 and 3 are of classification, 4 of regression (the paper's
4a or 4b, as the runs' ranges are the same or disjoint), 5 of policy search (one of the
paper's panels, as the runs' environment is). 6 is not in the paper: what gamma does
behind a batch normalisation, and what it is generated from. Panels over training take
the start and every checkpoint that is there: train with --config.training.keep_every=1
for one of each epoch. Panels 4b and 5b are of the scores that evaluate.py wrote; where
it has not judged the newest and the best checkpoints, this does.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from experiments import behaviour, curves, launch, motion, panels, plots
from experiments.evaluate import set_up
from experiments.recording import beside, environment, write_json
from experiments.runs import Run, open_runs
from l2f_jax.problems.regression import ERROR
from l2f_jax.problems.reinforcement import RETURN
from l2f_jax.problems.saved import read_record

FORMATS = (".png", ".pdf", ".svg")
IMAGES, WAVES, POLICIES = "classification", "regression", "reinforcement"


class Panel(NamedTuple):
    """A panel of a figure.

    problem: whose runs it shows;  gammas: whether one of them must generate gammas.
    measure: (run, tasks) -> numbers, see `panels`; panels may share a measure.
    draw: ({name of a run: its numbers}, axes).
    """

    title: str
    problem: str
    measure: Callable[[Run, int], dict[str, Any]]
    draw: Callable[[dict[str, Any], Any], None]
    gammas: bool = False


FIGURES = {
    "2a": Panel("loss", IMAGES, panels.landscapes, plots.loss_variation),
    "2b": Panel("gradient", IMAGES, panels.landscapes, plots.gradient_difference),
    "2c": Panel("smoothness", IMAGES, panels.landscapes, plots.smoothness),
    "3a": Panel("conflict by layer", IMAGES, panels.conflicts, plots.layer_conflicts),
    "3b": Panel("attenuation by hand", IMAGES, panels.attenuations, plots.attenuations),
    "3c": Panel("conflict by task", IMAGES, panels.conflicts, plots.task_conflicts),
    "3d": Panel("γ by task", IMAGES, panels.generated, plots.gammas, gammas=True),
    "4a": Panel("fits", WAVES, behaviour.fits, behaviour.draw_fits),
    "4b": Panel(
        "error",
        WAVES,
        behaviour.adaptation,
        partial(curves.draw_adaptation, score=ERROR),
    ),
    "5a": Panel(
        "learning",
        POLICIES,
        behaviour.learning,
        partial(curves.draw_learning, score=RETURN),
    ),
    "5b": Panel(
        "adaptation",
        POLICIES,
        behaviour.adaptation,
        partial(curves.draw_adaptation, score=RETURN),
    ),
    "5c": Panel("motion", POLICIES, motion.motion, motion.draw_motion),
    "6a": Panel(
        "inner rate", IMAGES, panels.effective_rates, plots.effective_rates, gammas=True
    ),
    "6b": Panel("embedding", IMAGES, panels.embedded, plots.embedded),
}


def chosen_panels(figure: str) -> dict[str, Panel]:
    """Return the panels of a figure ("3"), or the one that is named ("3d").

    Raises ValueError for a figure that is not there.
    """
    chosen = {name: p for name, p in FIGURES.items() if figure in (name, name[:-1])}
    if not chosen:
        figures = sorted({name[:-1] for name in FIGURES})
        raise ValueError(
            f"--figure ({figure!r}) must be one of {', '.join([*figures, *FIGURES])}"
        )
    return chosen


def check_runs(chosen: dict[str, Panel], configs: dict[Path, dict[str, Any]]) -> None:
    """Raise ValueError unless every panel can show the runs."""
    for name, panel in chosen.items():
        for run, config in configs.items():
            if config["problem"] != panel.problem:
                raise ValueError(
                    f"{run} is a run of {config['problem']}; figure {name} shows runs "
                    f"of {panel.problem}"
                )
            if config["learner"].get("name") == "protonet":
                raise ValueError(
                    f"{run} is of a prototypical network, which has no inner loop for "
                    f"figure {name} to show"
                )
        transforms = {config["transform"]["name"] for config in configs.values()}
        if panel.gammas and transforms == {"identity"}:
            raise ValueError(
                f"figure {name} shows gammas, but `transform.name` is 'identity' in "
                f"{', '.join(map(str, configs))}"
            )


def measured(
    chosen: dict[str, Panel], runs: Sequence[Run], tasks: int
) -> dict[str, dict[str, Any]]:
    """Return {name of a run: {name of a measure: numbers}}, each measured once."""
    measures = dict.fromkeys(panel.measure for panel in chosen.values())
    return {
        run.name: {measure.__name__: measure(run, tasks) for measure in measures}
        for run in runs
    }


def draw(
    chosen: dict[str, Panel], numbers: dict[str, dict[str, Any]], path: Path
) -> None:
    """Write the picture of what was measured."""
    with plots.grid(len(chosen), path) as grid:
        for axes, (name, panel) in zip(grid, chosen.items(), strict=True):
            key = panel.measure.__name__
            panel.draw({run: found[key] for run, found in numbers.items()}, axes)
            axes.set_title(f"({name[-1]}) {panel.title}", loc="left")


def main() -> None:
    parser = launch.Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--figure", required=True, help=", ".join(FIGURES))
    parser.add_argument("--out", type=Path, help="the picture; by default in RUN")
    parser.add_argument("--tasks", type=int, help="of figures 2, 3 and 6; else 100")
    options = parser.parse_args()
    chosen = chosen_panels(options.figure)
    out = options.out or options.runs[0] / f"figure_{options.figure}.png"
    tasks = 100 if options.tasks is None else options.tasks
    if tasks < 2:
        raise ValueError(f"--tasks ({tasks}) must be at least 2")
    images = all(panel.problem == IMAGES for panel in chosen.values())
    if options.tasks is not None and not images:
        raise ValueError(
            f"--tasks ({tasks}): figure {options.figure} has its own number"
        )
    configs = {run: read_record(run)["config"] for run in options.runs}
    if out.suffix not in FORMATS or not out.parent.is_dir():
        raise ValueError(
            f"--out ({out}) must be a file in a folder that exists, named "
            f"*{' or *'.join(FORMATS)}"
        )
    record = beside(out, ".json")
    check_runs(chosen, configs)
    set_up(options.runs)
    numbers = measured(chosen, open_runs(options.runs), tasks)
    content = {"figure": options.figure} | ({"tasks": tasks} if images else {})
    content |= {"runs": numbers}
    draw(chosen, numbers, out)
    write_json(record, {**content, **environment()})
    print(f"figure: {out}; numbers: {record}")


if __name__ == "__main__":
    launch.guard(main)
