"""Label your own images with a trained run, from a few examples of each class.

    python experiments/predict.py --run=runs/icons/l2f --support=FOLDER --query=IMAGES

FOLDER has a sub-folder of images for each class, IMAGES is an image or a folder of
them. The classes need not be any that the run was trained on. Prints the most probable
classes of every image; --json=FILE writes the probabilities of all.
"""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import launch
from experiments.recording import write_json
from l2f_jax.data.own_images import find_images, read_classes, read_image
from l2f_jax.problems.predictor import Predictor, load_predictor
from l2f_jax.problems.saved import CHECKPOINTS

SHOWN = 5  # classes of an image that are printed


def label(predictor: Predictor, support: Path, query: Path) -> dict[str, Any]:
    """Return every query image's probabilities {class: p}, likeliest class first."""
    images, labels, classes = read_classes(support, predictor.shape)
    files = find_images(query)
    queries = np.stack([read_image(file, predictor.shape) for file in files])
    probabilities = predictor(images, labels, queries)
    return {
        "iteration": predictor.iteration,
        "steps": predictor.steps,
        "protocol": predictor.protocol,
        "support": dict(zip(classes, np.bincount(labels).tolist(), strict=True)),
        "predictions": [
            {
                "image": str(file),
                "probabilities": {classes[i]: float(row[i]) for i in np.argsort(-row)},
            }
            for file, row in zip(files, probabilities, strict=True)
        ],
    }


def show(run: Path, result: dict[str, Any]) -> None:
    """Print a line for each image, its classes sorted by probability."""
    counts = ", ".join(f"{name} {count}" for name, count in result["support"].items())
    print(f"{run}: iteration {result['iteration']}, {result['steps']} inner steps")
    print(f"support images: {counts}")
    print(result["protocol"])
    rows = [
        [Path(found["image"]).name]
        + [
            f"{name} {p:.2f}"
            for name, p in list(found["probabilities"].items())[:SHOWN]
        ]
        for found in result["predictions"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def main() -> None:
    parser = launch.Parser(__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="the run directory")
    add("--support", type=Path, required=True, help="a folder of folders of images")
    add("--query", type=Path, required=True, help="an image, or a folder of images")
    add("--checkpoint", choices=CHECKPOINTS, default="best", help="best by validation")
    add("--steps", type=int, help="inner steps; as in training by default")
    add("--together", action="store_true", help="judge all query images as one batch")
    add("--json", type=Path, metavar="FILE", help="write the probabilities here")
    options = parser.parse_args()
    if options.json and not options.json.parent.is_dir():
        raise ValueError(f"--json ({options.json}) must lie in a folder that exists")
    launch.set_up()
    predictor = load_predictor(
        options.run,
        checkpoint=options.checkpoint,
        steps=options.steps,
        together=options.together,
    )
    result = label(predictor, options.support, options.query)
    show(options.run, result)
    if options.json:
        write_json(options.json, {"run": str(options.run), **result})


if __name__ == "__main__":
    launch.guard(main)
