"""Half-cheetah by MAML-TRPO: Figure 5 (middle, right) of the L2F paper.

    pip install -e '.[rl]'
    python experiments/train.py --run=runs/cheetah_direction_maml \\
        --config=configs/rl/half_cheetah.py:maml,direction

The argument is a comma-separated list of variants, all optional: those of
`navigation.py`, and `direction` (default) or `velocity`.

MAML's published mean returns after 0, 1, 2, 3 updates: direction -50.7, 293, 314, 316
(iteration 100; oracle 443), velocity -129.5, -78.6, -66.6, -60.8 (iteration 475; oracle
-54.5).
"""

from configs.rl import navigation

GOALS = ("direction", "velocity")


def get_config(arg: str = ""):
    names = [name for name in arg.split(",") if name]
    goals = [name for name in names if name in GOALS]
    config = navigation.get_config(",".join(n for n in names if n not in GOALS))
    goal = goals[0] if goals else GOALS[0]
    observe_goal = config.env.observe_goal
    with config.unlocked():
        del config.env.squared, config.env.gain
    config.env.name = "half_cheetah"
    config.env.goal = goal
    config.env.variant = "maml"  # or "gym": dt 0.05 s, horizon 100
    config.env.horizon = 200
    config.env.engine = "mujoco"  # or "mjx", in JAX on the accelerator: the extra mjx
    config.env.observe_goal = observe_goal
    config.learner.lr = 0.1
    if config.optimiser.max_kl:
        config.optimiser.max_kl = 0.02 if goal == "direction" else 0.01
    config.training.tasks = 40
    config.evaluation.validation_tasks = 20
    config.evaluation.test_tasks = 100
    return config
