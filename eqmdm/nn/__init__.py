"""Networks for single examples, batched with `jax.vmap`."""

from .._core.conditions import (
    AbstractConditionalNetwork as AbstractConditionalNetwork,
    missing_like as missing_like,
)
from .._core.noise_levels import (
    NoiseLevelFeatures as NoiseLevelFeatures,
    NoiseLevelMaps as NoiseLevelMaps,
)
from ._conditions import (
    ArrayCondition as ArrayCondition,
    ClassCondition as ClassCondition,
    condition_for as condition_for,
)
from ._mlp import MLP as MLP
from ._start_mean import StartMean as StartMean
from ._unet import UNet as UNet
