"""2D navigation by MAML-TRPO: Figure 5 (left) of the L2F paper.

    python experiments/train.py --run=runs/navigation_l2f \\
        --config=configs/rl/navigation.py:l2f

The argument is a comma-separated list of variants, all optional:

    l2f (default) | maml          second_order (default) | first_order
    adapted (default) | pretrained | oracle | random
    equal_trajectories (default) | equal_steps

"pretrained" trains one policy for all tasks, "oracle" lets it see the goal, "random"
is never trained: baselines of MAML's policy, which is not attenuated, so that they
refuse "l2f". L2F samples three sets of trajectories in a task, MAML two: with
"maml,equal_steps" these are half as large again, and the environment steps of training
are equal. Not those at test: before its first update L2F takes a second set there, for
the transform, so that it has seen 8000 steps where MAML has seen 4000.

MAML's published mean returns after 0, 1, 2, 3 updates (its code's reward, the distance
itself): -40.4, -11.7, -3.3, -3.2; oracle -2.3. Sampling is that code's: whole
trajectories until a number of environment steps is taken, 2000 for an update in
training and 4000 at test, so that early ends leave no update with less to learn from;
`surplus` 0 takes as many trajectories whenever they end. The L2F paper prints no
numbers and its supplement is not public. Chosen here for L2F: new trajectories after
attenuation and g_phi's last bias at 4 (gamma near 1). It fails with some seeds (see
RESULTS.md). The papers' texts have squared distances.
"""

from ml_collections import ConfigDict

from configs.classification.base import attenuate, chosen

VARIANTS = (
    ("l2f", "maml"),
    ("second_order", "first_order"),
    ("adapted", "pretrained", "oracle", "random"),
    ("equal_trajectories", "equal_steps"),
)
EVALUATION_STEPS = 4_000  # of the environment, for an update


def get_config(arg: str = ""):
    method, order, baseline, budget = _variants(arg)
    config = ConfigDict()
    config.problem = "reinforcement"
    config.seed = 0

    config.env = ConfigDict()
    config.env.name = "navigation"
    config.env.squared = False  # True: the papers' texts
    config.env.horizon = 100
    config.env.gain = 0.1  # of an action
    config.env.observe_goal = baseline == "oracle"

    config.model = ConfigDict()
    config.model.name = "gaussian"
    config.model.hidden = (100, 100)
    config.model.activation = "relu"

    config.learner = ConfigDict()
    config.learner.steps = 0 if baseline in ("oracle", "pretrained") else 1
    config.learner.lr = 0.5
    config.learner.later = 0.5  # rate of the second and later steps, relative to lr

    config.transform = attenuate() if method == "l2f" else ConfigDict()
    if method == "l2f":
        config.transform.bias = 4.0
    else:
        config.transform.name = "identity"

    config.sampling = ConfigDict()
    # At each point of the adaptation path.
    config.sampling.trajectories = 30 if budget == "equal_steps" else 20
    config.sampling.discount = 0.99
    config.sampling.decay = 1.0  # lambda
    config.sampling.surplus = 1  # as many again, should some end early
    config.sampling.fresh = method == "l2f"  # new trajectories after the transform

    config.optimiser = ConfigDict()  # a trust region
    config.optimiser.max_kl = 0.0 if baseline == "random" else 0.01
    config.optimiser.damping = 1e-5  # added to the diagonal of the Fisher matrix
    config.optimiser.conjugate_steps = 10  # of conjugate gradient
    config.optimiser.backtracks = 14  # the most times that a step is shortened
    config.optimiser.shrink = 0.8  # each time by this factor

    config.training = ConfigDict()
    config.training.iterations = 1 if baseline == "random" else 100
    config.training.iterations_per_epoch = 10
    config.training.iterations_per_dispatch = 1
    config.training.tasks = 20
    config.training.order = 1 if order == "first_order" else 2
    config.training.cpu_devices = 1  # more do not help: XLA divides the work itself
    config.training.keep_every = 0  # epochs, whose checkpoint is kept for figures, too

    config.evaluation = ConfigDict()
    config.evaluation.validation_tasks = 40
    config.evaluation.test_tasks = 200
    config.evaluation.trajectories = EVALUATION_STEPS // config.env.horizon
    config.evaluation.surplus = 1
    config.evaluation.ensemble = 1
    config.evaluation.seed = 0  # of the fixed tasks
    config.evaluation.points = (0,) if baseline == "oracle" else (0, 1, 2, 3)
    return config


def _variants(arg: str) -> list[str]:
    """Return the variant of each group; of a baseline, the method is "maml"."""
    method, order, baseline, budget = chosen(arg, VARIANTS)
    named = arg.split(",")
    if baseline != "adapted":
        if order == "first_order":
            raise ValueError(
                f"variant 'first_order' goes with 'adapted', not with {baseline!r}, "
                "which learns from no inner step"
            )
        if "l2f" in named:
            raise ValueError(
                f"variant {baseline!r} is a baseline of MAML's policy and goes with "
                "'maml', not with 'l2f'"
            )
        method = "maml"
    if budget == "equal_steps" and (method, baseline) != ("maml", "adapted"):
        raise ValueError(
            f"variant 'equal_steps' goes with 'maml' and 'adapted', not with "
            f"{method!r} and {baseline!r}"
        )
    return [method, order, baseline, budget]
