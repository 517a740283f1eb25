"""Models: a network with its diffusion, as a score and as Diffrax terms."""

from .base import AbstractModel as AbstractModel
from .denoiser import (
    AbstractDenoiser as AbstractDenoiser,
    DenoiserModel as DenoiserModel,
    PreconditionedDenoiser as PreconditionedDenoiser,
    VectorDenoiser as VectorDenoiser,
)
from .function import FunctionModel as FunctionModel
from .noise import NoiseModel as NoiseModel
from .terms import (
    Problem as Problem,
    forward_sde as forward_sde,
    probability_flow as probability_flow,
    reverse_sde as reverse_sde,
)
from .time_change import (
    AbstractNoiseClock as AbstractNoiseClock,
    AngleClock as AngleClock,
    LogSNRClock as LogSNRClock,
)
