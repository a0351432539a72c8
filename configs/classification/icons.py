"""The embedded default: L2F on icons, 5-way 1-shot, in minutes on a CPU.

    python experiments/compare.py --run=runs/icons \\
        --config=configs/classification/icons.py

Accuracy to beat, of a nearest neighbour on pixels: 45.1 % (1-shot), 68.1 % (5-shot).
What MAML and L2F reach here stands in RESULTS.md.
"""

from configs.classification import base


def get_config(arg: str = ""):
    config = base.get_config(arg)
    config.data.bank = "icons"
    config.training.tasks = 4
    config.training.iterations = 400
    config.training.iterations_per_epoch = 100
    config.training.first_order_epochs = 0
    config.evaluation.validation_tasks = 100
    return config
