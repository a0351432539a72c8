"""Write one page about trained runs: scores, curves, gammas, episodes, settings.

    python experiments/report.py runs/icons/l2f runs/icons/maml --out=report.html

Differences are from the first run, on the same test tasks. Scores are those that
evaluate.py wrote; where it has not judged the newest and the best checkpoints, this
does. The page needs no other file and no network; report.md beside it says the same in
Markdown.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments import curves, diagnostics, launch, page, plots, samples, setting
from experiments.evaluate import set_up
from experiments.figures import FIGURES
from experiments.page import Block, Section, Table, Text
from experiments.recording import beside, write_text
from experiments.runs import Run, gammas, is_attenuated, judge, open_runs
from experiments.scores import START, Evaluation

EPISODES = 2  # that are drawn
# Of a problem without images: the figure's panel that shows tasks, and what it shows.
SAMPLES = {
    "regression": (
        "4a",
        "The first test tasks, not chosen ones, one above the other: the curve (grey), "
        "its support points (triangles), and predictions before adaptation and after "
        "the inner steps of training.",
    ),
    "reinforcement": (
        "5c",
        "Policies in the first test tasks, not chosen ones. In a plane: paths before "
        "adaptation (dotted) and after the updates of training, and the goals (stars). "
        "Of a robot: frames of one trajectory after them, in order; or its limbs, the "
        "later the darker.",
    ),
}


def sections(
    runs: Sequence[Run], evaluations: Mapping[str, Evaluation], split: str
) -> Iterator[Section]:
    """Yield the parts of a report that apply to these runs, judged on a split."""
    yield Section("Runs", [*setting.introduction(runs), *setting.settings(runs)])
    yield Section(f"{split.capitalize()} scores", list(scores(evaluations)))
    yield Section("Curves", [curves_of(runs, evaluations)])
    found = {
        run.name: gammas(run, evaluations[run.name].tasks, split)
        for run in runs
        if is_attenuated(run)
    }
    if found:
        yield Section("Gammas", list(diagnostics.attenuation(found, split)))
    trained = {run.name: curves.attenuation(run.path) for run in runs}
    if any(numbers["step"] for numbers in trained.values()):
        yield Section("Gammas", [diagnostics.attenuation_in_training(trained)])
    if runs[0].config["problem"] == "classification":
        adapting = [run for run in runs if run.config["learner"]["name"] != "protonet"]
        if adapting:
            yield Section("Conflict", list(diagnostics.conflict(adapting)))
        yield Section("Sample episodes", list(episodes(runs, split)))
    else:
        yield Section("Sample tasks", [sample_tasks(runs)])
    yield Section("Environment", list(setting.surroundings(runs, evaluations)))


def scores(evaluations: Mapping[str, Evaluation]) -> Iterator[Block]:
    """Show each run's scores, and their differences from the first run's."""
    (name_of_first, first), *others = evaluations.items()
    score = first.score
    text = (
        f"Mean {score.name} over the same {first.tasks} {first.split} tasks and its "
        "95 % interval, after the inner steps of training. Best is by validation; an "
        "ensemble averages the outputs of the best. Differences are taken task by task."
    )
    for note in dict.fromkeys(note for e in evaluations.values() for note in e.notes):
        text += f" {note[0].upper()}{note[1:]}."
    yield Text(text)
    head = ["run", "checkpoint", "inner steps", curves.label(score)]
    head += [f"difference from {name_of_first}"] * bool(others)
    rows = []
    for name, e in evaluations.items():
        for checkpoint, found in e.checkpoints.items():
            at = ", ".join(map(str, found))
            row = [name, f"{checkpoint} (step {at})", str(e.steps)]
            row += [_typeset(e.text(checkpoint)), _gap(e, first, checkpoint)]
            rows.append(row[: len(head)])
    yield Table(head, rows, names=2)
    yield Text("The last checkpoints, after each number of inner steps:")
    known = {point for e in evaluations.values() for point in e.stages}
    # What precedes the first update is neither theta nor adapted.
    points = sorted(known, key=lambda point: 0.5 if point == START else point)
    rows = [[name, *_by_point(e, points)] for name, e in evaluations.items()]
    yield Table(["run", *map(str, points)], rows)


def _typeset(text: str) -> str:
    return text.replace("+-", "±").replace("-", "−")


def _gap(e: Evaluation, first: Evaluation, checkpoint: str) -> str:
    """Write the difference from the first run, if there is one."""
    gap = e.gap(first, checkpoint)
    return "" if e is first or gap is None else _typeset(e.score.text(gap))


def _by_point(e: Evaluation, points: Sequence[int | str]) -> Iterator[str]:
    for point in points:
        yield _typeset(e.text(point=point)) if point in e.stages else ""


def curves_of(runs: Sequence[Run], evaluations: Mapping[str, Evaluation]) -> Block:
    """Draw validation during training, and the scores against inner steps."""
    first = evaluations[runs[0].name]
    score, split = first.score, first.split
    learned = {run.name: curves.learning(run.path, score) for run in runs}
    adapted = {name: curves.adaptation(e) for name, e in evaluations.items()}
    with page.drawing():
        figure = Figure(figsize=(8, 3.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        curves.draw_learning(learned, left, score=score)
        curves.draw_adaptation(adapted, right, score=score, split=split)
        plots.plain(left, right)
        shown = "95 % intervals over tasks"
        if score.limit is not None:
            shown = "of tasks the median and the middle half"
        return page.picture(
            "curves",
            figure,
            f"Left: mean validation {score.name} during training. Right: {split} "
            f"{score.name} of the last checkpoints after each number of inner steps, "
            f"with {shown}.",
        )


def episodes(runs: Sequence[Run], split: str) -> Iterator[Block]:
    """Draw the first episodes of the split with the runs' labels."""
    yield Text(
        f"The first {EPISODES} {split} tasks, not chosen ones. Each row is a class: "
        "support images to the left, query images to the right; below them, the class "
        "that the last checkpoint of each run puts them in."
    )
    for i, sample in enumerate(samples.samples(runs, split, EPISODES)):
        right = ", ".join(
            f"{name} {samples.hits(labels)} of {labels.size}"
            for name, labels in sample.predicted.items()
        )
        with page.drawing():
            yield page.picture(
                f"episode_{i + 1}",
                samples.draw(sample),
                f"Task {i + 1}. Labelled rightly, of all its query images: {right}.",
            )


def sample_tasks(runs: Sequence[Run]) -> Block:
    """Draw what the last checkpoints do in the first test tasks."""
    name, caption = SAMPLES[runs[0].config["problem"]]
    panel = FIGURES[name]
    numbers = {run.name: panel.measure(run, EPISODES) for run in runs}
    with page.drawing():
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        panel.draw(numbers, axes)
        plots.plain(axes)
        return page.picture("tasks", figure, caption)


def main() -> None:
    parser = launch.Parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN")
    add("--out", type=Path, default=Path("report.html"), help="the page")
    add("--split", choices=("val", "test"), default="test")
    add("--bank", help="the data set's folder, if it has moved")
    options = parser.parse_args()
    out = options.out
    if out.suffix != ".html" or not out.parent.is_dir():
        raise ValueError(f"--out ({out}) must be a .html file in a folder that exists")
    text = beside(out, ".md")
    set_up(options.runs)
    runs = open_runs(options.runs, options.bank, complete=False)
    evaluations = judge(runs, options.split, options.bank)
    name = setting.title(runs)
    parts = list(sections(runs, evaluations, options.split))
    write_text(out, page.to_html(name, parts))
    write_text(text, page.to_markdown(name, parts))
    print(f"{out} and {text.name}: {len(runs)} runs")


if __name__ == "__main__":
    launch.guard(main)
