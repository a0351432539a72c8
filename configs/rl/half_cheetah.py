"""Half-cheetah by MAML-TRPO: Figure 5 (middle, right) of the L2F paper.

    pip install -e '.[rl]'
    python experiments/train.py --run=runs/cheetah_direction_maml \\
        --config=configs/rl/half_cheetah.py:maml,direction

The argument is a comma-separated list of variants, all optional: those of
`navigation.py`, and

    direction (default) | velocity          original (default) | gym

"original" is the robot as in MAML's own code, "gym" as in tristandeleu/pytorch-maml-rl:
longer steps, and a tenth of an action. Only, that code observes 20 numbers, the torso's
position among them; "gym" has the 17 that ProMP's code observes. All else is the same.

MAML's published mean returns after 0, 1, 2, 3 updates (original): direction -50.7, 293,
314, 316 (iteration 100; oracle 443), velocity -129.5, -78.6, -66.6, -60.8 (iteration
475, half as many trajectories and half the bound on the divergence; oracle -54.5).
"""

from configs.classification.base import chosen
from configs.rl import navigation

VARIANTS = (("direction", "velocity"), ("original", "gym"))


def get_config(arg: str = ""):
    goal, robot, *_ = chosen(arg, (*VARIANTS, *navigation.VARIANTS))
    own = {name for group in VARIANTS for name in group}
    others = [name for name in arg.split(",") if name not in own]
    config = navigation.get_config(",".join(others))
    with config.unlocked():
        del config.env.squared
    config.env.name = "half_cheetah"
    config.env.goal = goal
    config.env.variant = "gym" if robot == "gym" else "maml"
    config.env.horizon = 100 if robot == "gym" else 200
    config.env.gain = 0.1 if robot == "gym" else 1.0  # of an action
    config.env.engine = "mujoco"  # or "mjx", in JAX on the accelerator: the extra mjx
    config.learner.lr = 0.1
    config.training.tasks = 40
    config.sampling.surplus = 0  # no episode ends early
    if goal == "velocity":
        config.sampling.trajectories //= 2
    if config.optimiser.max_kl:  # else the random baseline
        config.optimiser.max_kl = 0.02 if goal == "direction" else 0.01
        config.training.iterations = 100 if goal == "direction" else 475
    config.evaluation.validation_tasks = 20
    config.evaluation.test_tasks = 100
    config.evaluation.trajectories = navigation.EVALUATION_STEPS // config.env.horizon
    config.evaluation.surplus = 0
    return config
