"""tieredImageNet, 84 x 84: Table 2 of the L2F paper.

    python experiments/prepare.py tieredimagenet FOLDER data_cache/tieredimagenet
    python experiments/train.py --run=runs/tiered_l2f_5shot \\
        --config=configs/classification/tieredimagenet.py:l2f,5shot

Test accuracy in %, of three averaged checkpoints, one seed:

    variant        1-shot   5-shot
    maml           49.06    67.48
    l2f            54.40    73.34
    maml,resnet12  58.58    71.24
    l2f,resnet12   63.94    77.61

The "+-" printed beside these numbers (0.41 to 0.50) is no interval over tasks: it is
sqrt(p (1 - p)), the standard deviation of a single right-or-wrong answer, written as
percent. The official repository has no tieredImageNet config; these are its
mini-ImageNet values. The bank is 16 GB; a split that does not fit beside a training
step on the device is streamed.
"""

from configs.classification import base


def get_config(arg: str = ""):
    config = base.get_config(arg)
    config.data.bank = "data_cache/tieredimagenet"
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.optimiser.clip = 10.0
    return config
