"""Every key of a few-shot classification config, at the official L2F code's values.

The other files of this folder start from here and name a data set. Their argument is a
comma-separated list of variants, all optional:

    l2f (default) | maml | protonet
    conv4 (default) | resnet12
    1shot (default) | 5shot

What the official code makes of them: MAML trains for 100 epochs of 500 iterations, L2F
for 60; a step takes 4 tasks with 1 shot, 2 with 5, and 1 with ResNet12 (the published
ResNet12 baseline depends on that number). It has no config for L2F, Conv4, 1 shot: here
that takes 4 tasks as MAML does.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

VARIANTS = (("l2f", "maml", "protonet"), ("conv4", "resnet12"), ("1shot", "5shot"))


def get_config(arg: str = "") -> ConfigDict:
    method, network, shots = chosen(arg, VARIANTS)
    config = ConfigDict()
    config.problem = "classification"
    config.seed = 0  # of initial parameters and, by default, training episodes

    config.data = ConfigDict()
    config.data.bank = ""  # "icons" (embedded), or the folder of a prepared bank
    config.data.icons_split = "semantic"  # of the embedded bank; or "random"
    config.data.ways = 5  # N
    config.data.shots = 5 if shots == "5shot" else 1  # K, support images of a class
    config.data.queries = 15  # Q, query images of a class
    config.data.mean = ()  # per channel, of images in [0, 1]; () takes the bank's
    config.data.std = ()
    config.data.augment = ()  # in training: "rotate_classes", "crop", "flip"
    config.data.placement = "auto"  # "device" or "stream"; auto: by size

    config.model = resnet12() if network == "resnet12" else conv4()
    config.model.norm = ConfigDict()
    config.model.norm.mode = "batch"  # or "support", "running", "layer"
    # Inner steps with an own scale and shift, not with "support"; 0: shared.
    config.model.norm.per_step = 0
    config.model.norm.momentum = 0.1  # share of the new in "running" averages
    config.model.norm.epsilon = 1e-5  # added to the variance
    config.model.norm.learn_scale = True  # False: no scale, as if it were 1 for ever
    config.model.norm.learn_shift = True  # False: no shift, as if it were 0 for ever

    config.learner = ConfigDict()
    # Or "fomaml" (first order throughout), "meta_sgd", "mamlpp", "anil", "boil".
    config.learner.name = "maml"
    config.learner.steps = 5  # S, inner steps
    config.learner.lr = 0.01  # alpha
    # Rates of some tensors, {path: rate}, that take another; none are learned then.
    config.learner.rates = ConfigDict()
    config.learner.adapt_norm = False  # also adapt the norm layers' scale and shift
    config.learner.remat = True  # recompute inner steps instead of storing them

    config.transform = attenuate() if method == "l2f" else ConfigDict()
    if method == "l2f":
        # Run of a ProtoNet whose prototypes g_phi sees (Table 5); "": the gradients.
        config.transform.prototypes = ""
    else:
        config.transform.name = "identity"
    if method == "protonet":
        config.learner = ConfigDict({"name": "protonet", "steps": 0})

    config.optimiser = ConfigDict()
    config.optimiser.name = "adam"  # or "sgd", as the paper's Algorithm 1
    config.optimiser.lr = 1e-3  # eta
    config.optimiser.min_lr = 1e-3  # cosine by epoch from lr to min_lr
    config.optimiser.clip = 0.0  # largest meta-gradient element of theta; 0: no clip

    config.training = ConfigDict()
    # Of the training episodes; None: `seed`. The official runs 0, 1 and 2 start from
    # the same parameters and differ in this alone.
    config.training.seed = placeholder(int)
    config.training.iterations_per_epoch = 500  # validated and saved after each
    config.training.iterations = 50_000 if method == "maml" else 30_000
    config.training.iterations_per_dispatch = 10  # by one call of the program
    config.training.tasks = 1 if network == "resnet12" else 2 if shots == "5shot" else 4
    config.training.reduction = "sum"  # of the tasks' losses; or "mean"
    config.training.order = 2  # 1: first order, whatever the learner
    # Epochs 0 .. 10, then `order`.
    config.training.first_order_epochs = 0 if method == "protonet" else 11
    config.training.multi_step_epochs = 0  # of the multi-step loss (MAML++: 15)
    config.training.task_map = "auto"  # "map" or "vmap"; auto: by backend
    config.training.cpu_devices = 0  # that share the tasks on a CPU; 0: one per core
    config.training.keep_every = 0  # epochs, whose checkpoint is kept for figures, too

    config.evaluation = ConfigDict()
    config.evaluation.validation_tasks = 600  # fixed, after every epoch
    config.evaluation.test_tasks = 600  # fixed, of evaluate.py
    config.evaluation.ensemble = 3  # best checkpoints kept, and averaged at test
    config.evaluation.seed = 0  # of the fixed tasks
    return config


def conv4() -> ConfigDict:
    model = ConfigDict()
    model.name = "conv4"
    model.stages = 4
    model.filters = 48
    model.conv_bias = False  # True in MAML++
    model.padding = 1  # pixels of zeros around what a convolution sees
    model.pooling = "max"  # "stride": strided convolutions, average pool at the end
    model.conv = "auto"  # "forward", "im2col", "xla"; auto: by backend
    return model


def resnet12() -> ConfigDict:
    model = ConfigDict()
    model.name = "resnet12"
    model.widths = (64, 128, 256, 512)
    model.conv = "auto"
    return model


def attenuate() -> ConfigDict:
    """Start from gamma * theta: L2F."""
    transform = ConfigDict()
    transform.name = "attenuate"
    transform.scope = "layer"  # Table 4: "parameter", "filter", "network"; "module"
    transform.conditioned = True  # False: learned itself (Table 4, with squash "none")
    transform.squash = "sigmoid"  # "none": gamma is unbounded (Table 6)
    transform.affine = False  # also generate a shift delta (Table 6)
    transform.layers = 2  # linear layers of g_phi; the paper's text says 3
    # Where the last bias of g_phi starts; None draws it, 4 is gamma near 1.
    transform.bias = placeholder(float)
    # Over what g_phi sees mean gradients; the paper's "layer" may mean "module", too.
    transform.embedding_scope = "layer"
    transform.embedding_scale = 1.0  # of those
    transform.through = False  # let meta-gradients flow through the embedding
    return transform


def chosen(arg: str, groups: Sequence[Sequence[str]]) -> list[str]:
    """Return the variant of each group that `arg` names, by default its first.

    Raises:
      ValueError: an unknown variant, or two of one group.
    """
    given = [name for name in arg.split(",") if name]
    known = [name for group in groups for name in group]
    for name in given:
        if name not in known:
            raise ValueError(f"variant {name!r} must be one of {', '.join(known)}")
    named = [[name for name in group if name in given] for group in groups]
    for group, names in zip(groups, named, strict=True):
        if len(names) > 1:
            raise ValueError(
                f"variants {' and '.join(map(repr, names))} exclude each other: "
                f"name one of {', '.join(group)}"
            )
    return [(*names, group[0])[0] for group, names in zip(groups, named, strict=True)]
