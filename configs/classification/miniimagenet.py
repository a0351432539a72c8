"""mini-ImageNet, 84 x 84: Tables 1, 3, 4 and 6 of the L2F paper.

    python experiments/prepare.py miniimagenet FOLDER data_cache/miniimagenet
    python experiments/train.py --run=runs/mini_l2f_5shot \\
        --config=configs/classification/miniimagenet.py:l2f,5shot

Test accuracy in %, of three averaged checkpoints, one seed:

    variant               paper           official README, 2 tasks a step
    maml                  48.70 (of MAML's own paper)
    maml,5shot            63.94 (63.11 of MAML's own paper)
    l2f                   52.10
    l2f,5shot             69.38
    maml,resnet12         51.03           58.37
    maml,resnet12,5shot   68.26           69.76
    l2f,resnet12          57.48           59.71
    l2f,resnet12,5shot    74.68           77.04

The "+-" printed beside these numbers (0.41 to 0.50) is no interval over tasks: it is
sqrt(p (1 - p)), the standard deviation of a single right-or-wrong answer, written as
percent. For 2 tasks a step with ResNet12: --config.training.tasks=2.
"""

from configs.classification import base


def get_config(arg: str = ""):
    config = base.get_config(arg)
    config.data.bank = "data_cache/miniimagenet"
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.optimiser.clip = 10.0
    return config
