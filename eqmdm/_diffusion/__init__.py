"""Linear diffusions: the interface, the (Q, D) recipe and the named diffusions."""

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
from .recipe import Recipe as Recipe
from .scalar import VESDE as VESDE, SubVPSDE as SubVPSDE
from .scaled import ScaledDiffusion as ScaledDiffusion
from .stationary import (
    AbstractStationaryDiffusion as AbstractStationaryDiffusion,
    LinearDiffusion as LinearDiffusion,
)
