"""Diffusions: the interfaces, the (Q, D) recipe, the named ones, and target laws."""

from .banded import BandedDiffusion as BandedDiffusion
from .base import (
    AbstractLinearDiffusion as AbstractLinearDiffusion,
)
from .composed import (
    TimeVaryingDiffusion as TimeVaryingDiffusion,
    TwoScheduleDiffusion as TwoScheduleDiffusion,
)
from .interval import LogSNRInterval as LogSNRInterval, TimeInterval as TimeInterval
from .learned import LearnedDiffusion as LearnedDiffusion
from .learned_schedule import LearnedSchedule as LearnedSchedule
from .linear_start import LinearStart as LinearStart
from .magnus import composed_transition as composed_transition
from .named import (
    ALDA as ALDA,
    CLD as CLD,
    MALDA as MALDA,
    PSLD as PSLD,
    VPSDE as VPSDE,
    CriticalThirdOrder as CriticalThirdOrder,
)
from .nonlinear import (
    AbstractNonlinearDiffusion as AbstractNonlinearDiffusion,
    Simulation as Simulation,
)
from .process import AbstractProcess as AbstractProcess
from .recipe import Recipe as Recipe
from .scalar import VESDE as VESDE, SubVPSDE as SubVPSDE
from .scaled import ScaledDiffusion as ScaledDiffusion
from .simulate import simulate_path as simulate_path
from .stationary import (
    AbstractStationaryDiffusion as AbstractStationaryDiffusion,
    LinearDiffusion as LinearDiffusion,
)
from .target import TargetDiffusion as TargetDiffusion
from .targets import (
    AbstractTarget as AbstractTarget,
    DoubleWellTarget as DoubleWellTarget,
    GaussianMixtureTarget as GaussianMixtureTarget,
    LogisticTarget as LogisticTarget,
    ProductTarget as ProductTarget,
)
