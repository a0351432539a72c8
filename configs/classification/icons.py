"""The embedded default: L2F on icons, 5-way 1-shot, in minutes on a CPU.

    python experiments/train.py --config=configs/classification/icons.py
    python experiments/train.py --config=configs/classification/icons.py:maml

The argument is "l2f" or "maml", then options: "l2f,5shot".
A nearest neighbour on pixels has 45.1 (1-shot) and 68.1 (5-shot); see RESULTS.md for
what the two methods reach.
"""

from configs.classification import base


def get_config(arg: str = ""):
    config = base.get_config(arg)
    config.data.bank = "icons"
    config.training.tasks = 4
    config.training.iterations = 1_000
    config.training.iterations_per_epoch = 100
    config.training.first_order_epochs = 0
    return config
