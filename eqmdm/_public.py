"""The public names; users reach them as `eqmdm.NAME`."""

from . import data as data, nn as nn
from ._bound.decoders import (
    AbstractDecoder as AbstractDecoder,
    DataDecoder as DataDecoder,
    DiscreteDecoder as DiscreteDecoder,
    StartDecoder as StartDecoder,
)
from ._bound.discrete_time import discrete_elbo as discrete_elbo
from ._bound.elbo import Elbo as Elbo, elbo as elbo
from ._bound.forms import (
    AbstractDivergence as AbstractDivergence,
    AbstractForm as AbstractForm,
    DenoisingScoreMatching as DenoisingScoreMatching,
    ExactDivergence as ExactDivergence,
    HutchinsonDivergence as HutchinsonDivergence,
    HybridScoreMatching as HybridScoreMatching,
    ImplicitScoreMatching as ImplicitScoreMatching,
    LowVariance as LowVariance,
)
from ._bound.times import (
    AbstractTimeSampler as AbstractTimeSampler,
    ImportanceTime as ImportanceTime,
    LogSNRTime as LogSNRTime,
    UniformTime as UniformTime,
    antithetic as antithetic,
    low_discrepancy as low_discrepancy,
)
from ._core.gaussian import (
    Gaussian as Gaussian,
    PerturbationKernel as PerturbationKernel,
    Transition as Transition,
)
from ._core.sharding import (
    device_mesh as device_mesh,
    distribute as distribute,
    divide_batch as divide_batch,
    on_host as on_host,
)
from ._diffusion import (
    ALDA as ALDA,
    CLD as CLD,
    MALDA as MALDA,
    PSLD as PSLD,
    VESDE as VESDE,
    VPSDE as VPSDE,
    AbstractDiffusion as AbstractDiffusion,
    AbstractLinearDiffusion as AbstractLinearDiffusion,
    AbstractStationaryDiffusion as AbstractStationaryDiffusion,
    CriticalThirdOrder as CriticalThirdOrder,
    LearnedDiffusion as LearnedDiffusion,
    LinearDiffusion as LinearDiffusion,
    LogSNRInterval as LogSNRInterval,
    SubVPSDE as SubVPSDE,
    TimeInterval as TimeInterval,
    TimeVaryingDiffusion as TimeVaryingDiffusion,
    TwoScheduleDiffusion as TwoScheduleDiffusion,
    composed_transition as composed_transition,
)
from ._diffusion.schedule import (
    AbstractSchedule as AbstractSchedule,
    ConstantSchedule as ConstantSchedule,
    CosineSchedule as CosineSchedule,
    LinearSchedule as LinearSchedule,
)
from ._levels import (
    AbstractDequantiser as AbstractDequantiser,
    AbstractTransform as AbstractTransform,
    GreyLevels as GreyLevels,
    LevelCentres as LevelCentres,
    Logit as Logit,
    Scale as Scale,
    TruncatedNormalDequantiser as TruncatedNormalDequantiser,
    UniformDequantiser as UniformDequantiser,
    bits_per_dim as bits_per_dim,
)
from ._likelihood.log_likelihood import log_likelihood as log_likelihood
from ._likelihood.routes import (
    AbstractRoute as AbstractRoute,
    AugmentedRoute as AugmentedRoute,
    CollapsedRoute as CollapsedRoute,
    Likelihood as Likelihood,
)
from ._metrics import (
    Distance as Distance,
    frechet_distance as frechet_distance,
    maximum_mean_discrepancy as maximum_mean_discrepancy,
    sliced_wasserstein as sliced_wasserstein,
)
from ._model.score import (
    AbstractScore as AbstractScore,
    CallableScore as CallableScore,
    DenoiserScore as DenoiserScore,
    FreeScore as FreeScore,
    PreconditionedDenoiser as PreconditionedDenoiser,
)
from ._model.terms import (
    Problem as Problem,
    forward_sde as forward_sde,
    probability_flow as probability_flow,
    reverse_sde as reverse_sde,
)
from ._model.time_change import (
    AbstractNoiseClock as AbstractNoiseClock,
    AngleClock as AngleClock,
    LogSNRClock as LogSNRClock,
)
from ._sampling import (
    SSCS as SSCS,
    AbstractMultistep as AbstractMultistep,
    AbstractRoot as AbstractRoot,
    AbstractSampler as AbstractSampler,
    AlignedRoot as AlignedRoot,
    AncestralSampler as AncestralSampler,
    CholeskyRoot as CholeskyRoot,
    Collapsed as Collapsed,
    CollapsedHeun as CollapsedHeun,
    DataPrediction as DataPrediction,
    LangevinCorrector as LangevinCorrector,
)
from ._sampling.grids import (
    AbstractGrid as AbstractGrid,
    CustomGrid as CustomGrid,
    LogSNRGrid as LogSNRGrid,
    QuadraticGrid as QuadraticGrid,
    RhoGrid as RhoGrid,
    UniformGrid as UniformGrid,
)
from ._sampling.sample import sample as sample
from ._training.evaluate import (
    Evaluation as Evaluation,
    Objective as Objective,
    evaluate as evaluate,
    make_score as make_score,
)
from ._training.run import (
    Restored as Restored,
    Run as Run,
    load as load,
    resumed_state as resumed_state,
)
from ._training.stream import BatchStream as BatchStream, ExampleSource as ExampleSource
from ._training.train import (
    Batches as Batches,
    TrainState as TrainState,
    make_optimiser as make_optimiser,
    parameters as parameters,
    steps_per_call as steps_per_call,
    train_step as train_step,
    with_enough_doublings as with_enough_doublings,
)
