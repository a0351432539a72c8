"""FC100 (CIFAR-100 split by superclasses), 32 x 32.

    python experiments/prepare.py fc100 ARCHIVE data_cache/fc100
    python experiments/train.py --run=runs/fc100 \\
        --config=configs/classification/fc100.py:l2f,5shot

The paper reports FC100 in its supplement only, which is not public; the official
repository has its normalisation, but no config. Accuracy to beat, on pixels: 28.0 %
(1-shot), 35.6 % (5-shot).
"""

from configs.classification import base


def get_config(arg: str = ""):
    config = base.get_config(arg)
    config.data.bank = "data_cache/fc100"
    config.data.mean = (0.5071, 0.4847, 0.4408)
    config.data.std = (0.2675, 0.2565, 0.2761)
    return config
