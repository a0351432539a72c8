"""Sinusoid regression: Table 7 and Figure 4 of the L2F paper.

    python experiments/train.py --run=runs/sinusoid_l2f_10 \\
        --config=configs/regression/sinusoid.py:l2f,k10

The argument is a comma-separated list of variants, all optional:

    l2f (default) | maml     k5 | k10 (default) | k20     one_step (default) | two_steps
    same (default) | disjoint

"one_step" trains with one inner step, as MAML's public code does, "two_steps" with two.
Tests go on to ten. After more steps than were trained, nothing keeps the inner loop
stable: from "one_step" some tasks diverge, from "two_steps" none did (RESULTS.md).
"disjoint" tests on ranges that training never saw (Figure 4b).

Mean squared error in the paper, after 1 / 2 / 5 inner steps:

    k     MAML                       MAML+L2F
    5     1.2247 / 1.0268 / 0.8995   1.0537 / 0.8426 / 0.7096
    10    0.9884 / 0.6192 / 0.4072   0.8069 / 0.5317 / 0.3696
    20    0.6144 / 0.3346 / 0.1817   0.5475 / 0.2805 / 0.1629

Not published, and so chosen here: the range of the frequency; which tensors share a
gamma; the number of training steps and iterations; the ranges of Figure 4b.
"""

from math import pi

from ml_collections import ConfigDict

from configs.classification.base import attenuate, chosen

VARIANTS = (
    ("l2f", "maml"),
    ("k10", "k5", "k20"),
    ("one_step", "two_steps"),
    ("same", "disjoint"),
)


def get_config(arg: str = ""):
    method, k, steps, ranges = chosen(arg, VARIANTS)
    config = ConfigDict()
    config.problem = "regression"
    config.seed = 0

    config.data = ConfigDict()
    config.data.shots = int(k[1:])  # k, support points
    config.data.queries = int(k[1:])  # query points in training
    config.data.test_queries = 100  # query points in validation and test
    config.data.train = ConfigDict()
    config.data.train.amplitude = (0.1, 5.0)
    config.data.train.frequency = (0.8, 1.2)  # MAML's code: always 1
    config.data.train.phase = (0.0, pi)
    config.data.train.inputs = (-5.0, 5.0)
    config.data.test = ConfigDict()  # (): the range of training
    config.data.test.update({key: () for key in config.data.train})
    if ranges == "disjoint":
        config.data.train.amplitude, config.data.test.amplitude = (0.1, 3.0), (3.0, 5.0)
        config.data.train.frequency, config.data.test.frequency = (0.8, 1.0), (1.0, 1.2)
        config.data.train.phase, config.data.test.phase = (0.0, pi / 2), (pi / 2, pi)

    config.model = ConfigDict()
    config.model.name = "mlp"
    config.model.hidden = (40, 40)

    config.learner = ConfigDict()
    config.learner.name = "maml"
    config.learner.steps = 1 if steps == "one_step" else 2
    config.learner.lr = 0.01
    config.learner.remat = False  # the activations are small

    config.transform = attenuate() if method == "l2f" else ConfigDict()
    if method == "maml":
        config.transform.name = "identity"

    config.optimiser = ConfigDict()
    config.optimiser.name = "adam"
    config.optimiser.lr = 1e-3
    config.optimiser.min_lr = 1e-3
    config.optimiser.clip = 0.0

    config.training = ConfigDict()
    config.training.iterations = 60_000
    config.training.iterations_per_epoch = 10_000
    config.training.iterations_per_dispatch = 1_000
    config.training.seeds = 5  # runs side by side: seed, seed + 1, ...
    config.training.tasks = 25
    config.training.reduction = "mean"
    config.training.order = 2
    config.training.first_order_epochs = 0
    config.training.multi_step_epochs = 0
    config.training.task_map = "vmap"  # a task alone is too small to keep a core busy
    config.training.cpu_devices = 1
    config.training.keep_every = 0  # epochs, whose checkpoint is kept for figures, too

    config.evaluation = ConfigDict()
    config.evaluation.validation_tasks = 1_000
    config.evaluation.test_tasks = 6_000
    config.evaluation.seed = 0  # of the fixed tasks
    config.evaluation.ensemble = 1
    config.evaluation.points = (0, 1, 2, 5, 10)  # inner steps; beyond the trained, too
    return config
