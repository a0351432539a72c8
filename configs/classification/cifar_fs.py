"""CIFAR-FS (Bertinetto split of CIFAR-100), 32 x 32.

    python experiments/prepare.py cifar_fs ARCHIVE data_cache/cifar_fs
    python experiments/train.py --run=runs/cifar_fs \\
        --config=configs/classification/cifar_fs.py:l2f,5shot

The paper reports CIFAR-FS in its supplement only, which is not public; the official
repository has no config for it. These are its mini-ImageNet values with its CIFAR-100
normalisation. Accuracy to beat, on pixels: 30.8 % (1-shot), 39.8 % (5-shot).
"""

from configs.classification import base


def get_config(arg: str = ""):
    config = base.get_config(arg)
    config.data.bank = "data_cache/cifar_fs"
    config.data.mean = (0.5071, 0.4847, 0.4408)
    config.data.std = (0.2675, 0.2565, 0.2761)
    return config
