"""Networks as pure functions over flat parameter dictionaries: one network a file."""

from l2f_jax.models.conv4 import conv4 as conv4
from l2f_jax.models.linen import from_linen as from_linen
from l2f_jax.models.mlp import mlp as mlp
from l2f_jax.models.norm import Norm as Norm
from l2f_jax.models.resnet12 import resnet12 as resnet12
