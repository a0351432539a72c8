"""A trained run as a function: a few labelled images of new classes, and what to label.

    predictor = load_predictor("runs/icons")
    support, labels, names = read_classes("my_classes", predictor.shape)
    query = np.stack([read_image(path, predictor.shape) for path in my_images])
    probabilities = predictor(support, labels, query)  # [queries, classes]

(`read_classes` and `read_image` are in `l2f_jax.data.own_images`.) The data set that
the run was trained on need not be there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from l2f_jax.data.episodes import Preprocess
from l2f_jax.inner import constant
from l2f_jax.outer import TrainState
from l2f_jax.problems import saved
from l2f_jax.problems.classification import normalising
from l2f_jax.problems.classifier import (
    PROTOCOLS,
    method_of,
    protocol,
    prototypes_digest,
)
from l2f_jax.types import Array, Batch, Learner

ALONE = "inductive: a query image is normalised together with the support images"


@dataclass(frozen=True)
class Predictor:
    """Adapts to a support set and labels query images; from `load_predictor`.

    shape: (H, W, C) of every image.
    ways: the most classes that a support set may have; 2 is the fewest.
    steps: inner steps taken.
    protocol: what the label of a query image may depend on besides the support set.
    iteration: of the checkpoint.
    """

    shape: tuple[int, int, int]
    ways: int
    steps: int
    protocol: str
    iteration: int
    logits: Callable[[Batch, Array], Array] = field(repr=False)

    def __call__(
        self,
        support_images: np.ndarray,
        support_labels: np.ndarray,
        query_images: np.ndarray,
    ) -> np.ndarray:
        """Return the probability of each class for each query image.

        Classes may have different numbers of images; each image weighs the same. With
        fewer classes than the network has outputs, the others take no part: neither in
        the loss of the inner loop nor in the probabilities.

        Args:
          support_images: uint8 [n, H, W, C].
          support_labels: integers [n], each of 0 .. classes - 1 at least once.
          query_images: uint8 [queries, H, W, C].
        Returns:
          [queries, classes] float64; rows sum to 1.
        Raises:
          ValueError: images of another type or shape; labels with a gap, of a single
            class, or of more classes than `ways`.
        """
        self._check_images("support_images", support_images)
        self._check_images("query_images", query_images)
        labels, classes = self._checked_labels(support_labels, len(support_images))
        support = Batch(jnp.asarray(support_images), jnp.asarray(labels))
        logits = np.asarray(self.logits(support, jnp.asarray(query_images)))
        logits = logits[:, :classes].astype(np.float64)
        likelihood = np.exp(logits - logits.max(-1, keepdims=True))
        return likelihood / likelihood.sum(-1, keepdims=True)

    def _check_images(self, name: str, images: np.ndarray) -> None:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.shape:
            raise ValueError(
                f"`{name}` ({images.dtype} {images.shape}) must be uint8 [n, "
                f"{', '.join(map(str, self.shape))}]"
            )
        if len(images) == 0:
            raise ValueError(f"`{name}` holds no image")

    def _checked_labels(self, labels: np.ndarray, n: int) -> tuple[np.ndarray, int]:
        labels = np.asarray(labels)
        present = np.unique(labels)
        if labels.shape != (n,) or not np.array_equal(present, np.arange(len(present))):
            raise ValueError(
                f"`support_labels` must be {n} integers, 0 .. classes - 1, each used"
            )
        if not 2 <= len(present) <= self.ways:
            raise ValueError(
                f"the classes of the support set ({len(present)}) must be 2 to "
                f"{self.ways}, as many as this run tells apart"
            )
        return labels.astype(np.int32), len(present)


def load_predictor(
    run: str | Path,
    *,
    checkpoint: str = "best",
    steps: int | None = None,
    together: bool = False,
) -> Predictor:
    """Load a run of few-shot classification.

    With norm mode "batch", published evaluations normalise the query images of a task
    together, as many of every class: with `together` so does the predictor. One's own
    queries may be few or all of one class, where that misleads; by default, each
    is therefore normalised together with the support images and judged alone.

    Args:
      run: the run directory.
      checkpoint: "best" by validation, or the "latest".
      steps: inner steps; as in training by default.
      together: judge all query images of a call as one batch.
    Raises:
      ValueError: no such run, one of another problem, or one without checkpoints.
    """
    if steps is not None and steps < 0:
        raise ValueError(f"`steps` ({steps}) must be at least 0")
    run = Path(run)
    record = saved.read_classification(run)
    config, facts = record["config"], record["data"]
    data, shape = config["data"], tuple(facts["shape"])
    built = method_of(config, data["ways"])
    if prototypes := config["transform"].get("prototypes"):
        saved.check_prototypes(run, prototypes_digest(prototypes, data["ways"]))
    state = saved.restore(run, checkpoint, built, shape)
    steps = built.steps if steps is None else steps
    preprocess = normalising(data["mean"], data["std"], facts["provenance"])
    rule = protocol(config["model"])
    if rule == PROTOCOLS["batch"] and not together:
        rule = ALONE
    logits = _logits(built.learner, preprocess, steps, together, rule == ALONE)
    return Predictor(
        shape=shape,
        ways=data["ways"],
        steps=steps,
        protocol=rule,
        iteration=int(state.step),
        logits=partial(logits, state),
    )


def _logits(
    learner: Learner,
    preprocess: Preprocess,
    steps: int,
    together: bool,
    beside_support: bool,
) -> Callable[[TrainState, Batch, Array], Array]:
    """Build (state, raw support, raw query) -> logits [queries, outputs]."""

    @jax.jit
    def logits(state: TrainState, support: Batch, query: Array) -> Array:
        support = Batch(preprocess(support.inputs, None), support.targets)
        adapted = learner.adapt(
            state.meta, state.stats, constant(support), steps, first_order=True
        )

        def predict(inputs: Array) -> Array:
            return learner.predict(adapted, steps, inputs, phase="test")[0]

        def alone(image: Array) -> Array:
            company = [support.inputs] if beside_support else []
            return predict(jnp.concatenate([image[None], *company]))[0]

        inputs = preprocess(query, None)
        return predict(inputs) if together else jax.lax.map(alone, inputs)

    return logits
