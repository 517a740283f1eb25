"""Evidence lower bounds: forms, decoders and time samplers."""

from .decoders import (
    AbstractDecoder as AbstractDecoder,
    DataDecoder as DataDecoder,
    DiscreteDecoder as DiscreteDecoder,
    StartDecoder as StartDecoder,
)
from .discrete_time import discrete_elbo as discrete_elbo
from .elbo import elbo as elbo
from .forms import (
    AbstractForm as AbstractForm,
    AbstractSimulatedForm as AbstractSimulatedForm,
    DenoisingScoreMatching as DenoisingScoreMatching,
    HybridScoreMatching as HybridScoreMatching,
    ImplicitScoreMatching as ImplicitScoreMatching,
    LowVariance as LowVariance,
)
from .local_form import LocalScoreMatching as LocalScoreMatching
from .result import Elbo as Elbo
from .times import (
    AbstractTimeSampler as AbstractTimeSampler,
    ImportanceTimeSampler as ImportanceTimeSampler,
    LogSNRTimeSampler as LogSNRTimeSampler,
    UniformTimeSampler as UniformTimeSampler,
    low_discrepancy as low_discrepancy,
)
