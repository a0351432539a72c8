"""Test episodes as pictures: support images, query images, and what runs predict."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.runs import Run, last_state
from l2f_jax.data.bank import ImageBank
from l2f_jax.data.episodes import EpisodeSpec, episode_keys, sample_indices
from l2f_jax.problems.classification import open_bank

# At most so many support images, and images in all, stand side by side.
SHOTS, WIDTH = 5, 9
# In units of an image: between support and query, above and below a row, and between
# images; a line of labels.
GAP, TITLE, GUTTER, LINE = 1.5, 0.42, 0.06, 0.27
NAME = 14  # characters of a run's name that fit into the gap
RIGHT, WRONG = "#2f9e5b", "#e0525a"


class Sample(NamedTuple):
    """One task of image classification, and how runs label it.

    images: [ways, shots + queries, H, W, C] uint8, a class in each row.
    shots: how many columns of it are the support set.
    classes: their names.
    predicted: run -> [ways, queries], the row that each query image is put in.
    """

    images: np.ndarray
    shots: int
    classes: Sequence[str]
    predicted: Mapping[str, np.ndarray]


def samples(runs: Sequence[Run], split: str, tasks: int) -> list[Sample]:
    """Return the first tasks of a split as the newest checkpoints label them."""
    data = dict(runs[0].config["data"])
    spec = EpisodeSpec(*(data[name] for name in EpisodeSpec._fields))
    bank = open_bank(data["bank"], data["icons_split"]).only(split)
    seed = runs[0].experiment.evaluation.seed
    numbers = _image_numbers(bank, split, spec, tasks, seed)
    labels = {run.name: _labels(run, spec, split, tasks) for run in runs}
    owner = np.repeat(bank.classes, bank.counts)  # of each image
    return [
        Sample(
            images=np.asarray(bank.images[found]),
            shots=spec.shots,
            classes=owner[found[:, 0]].tolist(),
            predicted={name: rows[i] for name, rows in labels.items()},
        )
        for i, found in enumerate(numbers)
    ]


def hits(labels: np.ndarray) -> int:
    """Count the right ones of a task's labels, [ways, queries]."""
    return int((labels == np.arange(len(labels))[:, None]).sum())


def _image_numbers(
    bank: ImageBank, split: str, spec: EpisodeSpec, tasks: int, seed: int
) -> np.ndarray:
    """Return which images the fixed tasks hold, [tasks, ways, shots + queries]."""
    table = bank.table(split)
    draw = jax.vmap(lambda key: sample_indices(table, spec, key))
    return np.asarray(draw(episode_keys(seed, 0, tasks)))


def _labels(run: Run, spec: EpisodeSpec, split: str, tasks: int) -> np.ndarray:
    """Return what a run says after its last inner step, [tasks, ways, queries]."""
    experiment = run.experiment
    state, points = last_state(run), (experiment.steps,)
    outputs = experiment.predict(state.meta, state.stats, split, tasks, points).outputs
    return outputs[:, 0].argmax(-1).reshape(tasks, spec.ways, spec.queries)


def draw(sample: Sample) -> Figure:
    """Draw an episode: a class in each row, its support images first.

    Below every query image stands the class that each run gives it.
    """
    ways, columns = sample.images.shape[:2]
    shots = min(sample.shots, SHOTS)
    queries = min(columns - sample.shots, WIDTH - shots)
    width = shots + GAP + queries
    height = TITLE + 1 + LINE * len(sample.predicted) + GUTTER
    inches = 7.5 / (WIDTH + GAP)
    figure = Figure(figsize=(width * inches, ways * height * inches))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(ways * height, 0))
    axes.axis("off")
    for way in range(ways):
        top, left = way * height + TITLE, shots + GAP
        axes.text(0, top - 0.12, f"{_letter(way)}  {sample.classes[way]}", size=10)
        for i in range(shots):
            _image(axes, sample.images[way, i], i, top)
        for i in range(queries):
            _image(axes, sample.images[way, sample.shots + i], left + i, top)
        for line, (name, labels) in enumerate(sample.predicted.items()):
            middle = top + 1 + LINE * (line + 0.5)
            _line(axes, left, middle, name, way, labels[way, :queries])
    return figure


def _image(axes: Axes, image: np.ndarray, left: float, top: float) -> None:
    axes.imshow(
        image.squeeze(-1) if image.shape[-1] == 1 else image,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="none",
        extent=(left, left + 1 - GUTTER, top + 1 - GUTTER, top),
        aspect="auto",
    )


def _line(
    axes: Axes, left: float, y: float, name: str, way: int, labels: np.ndarray
) -> None:
    """Write a run's name, and its labels below the images from `left` on."""
    short = name if len(name) <= NAME else "…" + name[1 - NAME :]
    common = {"size": 8.5, "verticalalignment": "center"}
    axes.text(left - 0.15, y, short, horizontalalignment="right", **common)
    for i, found in enumerate(labels):
        right = found == way
        axes.text(
            left + i + (1 - GUTTER) / 2,
            y,
            f"{_letter(found)} {'✓' if right else '✗'}",
            color=RIGHT if right else WRONG,
            weight="normal" if right else "bold",
            horizontalalignment="center",
            **common,
        )


def _letter(way: int) -> str:
    """Name a class of the episode: A .. Z, then its number."""
    return chr(ord("A") + way) if way < 26 else str(way + 1)
