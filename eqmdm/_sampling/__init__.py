"""Samplers, their step grids, and the drawing of samples."""

from .ancestral import AncestralSampler as AncestralSampler
from .base import AbstractSampler as AbstractSampler
from .diffrax import DiffraxSampler as DiffraxSampler
from .dpm_solver import DPMSolver as DPMSolver
from .edm_heun import EDMHeun as EDMHeun
from .grids import (
    AbstractGrid as AbstractGrid,
    CustomGrid as CustomGrid,
    LogSNRGrid as LogSNRGrid,
    QuadraticGrid as QuadraticGrid,
    RhoGrid as RhoGrid,
    UniformGrid as UniformGrid,
)
from .langevin import LangevinCorrector as LangevinCorrector
from .sample import sample as sample
from .sscs import SSCS as SSCS
from .step_sampler import AbstractStepSampler as AbstractStepSampler
from .trajectory import (
    SampleResult as SampleResult,
    SaveAt as SaveAt,
    Trajectory as Trajectory,
)
