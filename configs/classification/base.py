"""Every key of a few-shot classification config, with the official L2F code's values.

Not a run of its own: it names no data set. The argument of every config in this folder
is a comma-separated list of variants: "l2f" (default) or "maml"; "1shot" (default) or
"5shot"; "resnet12" (default is Conv4).
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.problem = "classification"
    config.seed = 0  # of initial parameters and training episodes

    config.data = ConfigDict()
    config.data.bank = ""  # "icons" (embedded) or the folder of a prepared bank
    config.data.icons_split = "semantic"  # of the embedded bank: or "random"
    config.data.ways = 5  # N
    config.data.shots = 1  # K, support images of a class
    config.data.queries = 15  # Q, query images of a class
    config.data.mean = ()  # per channel, of images in [0, 1]; () takes the bank's
    config.data.std = ()
    config.data.augment = ()  # in training: "rotate_classes", "crop", "flip"
    config.data.placement = "auto"  # "device" or "stream"; auto: by size

    config.model = ConfigDict()
    config.model.name = "conv4"
    config.model.filters = 48
    config.model.conv_bias = False
    config.model.pooling = "max"  # or "stride"
    config.model.conv = "auto"  # how to compute it: "im2col" or "xla"; auto: by backend
    config.model.norm = ConfigDict()
    config.model.norm.mode = "batch"  # or "support", "running", "layer"
    config.model.norm.per_step = 0  # scale and shift per inner step (MAML++); 0 shares

    config.learner = ConfigDict()
    config.learner.name = "maml"  # or "meta_sgd", "mamlpp", "anil", "boil"
    config.learner.steps = 5  # S, inner steps
    config.learner.lr = 0.01  # alpha
    config.learner.remat = True  # recompute inner steps instead of storing them

    config.transform = ConfigDict()
    config.transform.name = "identity"

    config.optimiser = ConfigDict()  # Adam
    config.optimiser.lr = 1e-3  # eta
    config.optimiser.min_lr = 1e-3  # cosine by epoch from lr to min_lr
    config.optimiser.clip = 0.0  # largest meta-gradient element of theta; 0: no clip

    config.training = ConfigDict()
    config.training.iterations = 30_000
    config.training.iterations_per_epoch = 500
    config.training.iterations_per_dispatch = 10
    config.training.tasks = 2
    config.training.reduction = "sum"
    config.training.order = 2
    config.training.first_order_epochs = 11
    config.training.multi_step_epochs = 0
    config.training.task_map = "auto"

    config.evaluation = ConfigDict()
    config.evaluation.validation_tasks = 600
    config.evaluation.test_tasks = 600
    config.evaluation.ensemble = 3  # best checkpoints kept, and averaged at test

    for variant in filter(None, arg.split(",")):
        _apply(config, variant)
    return config


def _apply(config: ConfigDict, variant: str) -> None:
    if variant == "l2f":
        attenuate(config)
    elif variant == "5shot":
        config.data.shots = 5
    else:
        raise ValueError(variant)


def attenuate(config: ConfigDict) -> None:
    """Start from gamma * theta: L2F."""
    config.transform = ConfigDict(
        dict(
            name="attenuate",
            scope="layer",  # Table 4: "parameter", "filter", "module", "network"
            conditioned=True,  # False: gamma is learned itself, from 1 (Table 4)
            squash="sigmoid",  # "none": unbounded (Table 6)
            affine=False,  # also generate a shift delta (Table 6)
            layers=2,  # of g_phi
            through=False,  # let meta-gradients flow through the embedding
        )
    )
