"""Samplers that use the linear structure, each a scan over a grid of times."""

from .base import (
    AbstractSampler as AbstractSampler,
    Reading as Reading,
    part as part,
    read_state as read_state,
)
from .multistep import (
    AbstractMultistep as AbstractMultistep,
    AbstractRoot as AbstractRoot,
    AlignedRoot as AlignedRoot,
    CholeskyRoot as CholeskyRoot,
    Collapsed as Collapsed,
    CollapsedHeun as CollapsedHeun,
    DataPrediction as DataPrediction,
)
from .stochastic import (
    SSCS as SSCS,
    AncestralSampler as AncestralSampler,
    LangevinCorrector as LangevinCorrector,
)
