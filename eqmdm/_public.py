"""The public names; users reach them as `eqmdm.NAME`."""

from . import data as data, nn as nn
from ._basis import (
    AbstractBasis as AbstractBasis,
    CosineBasis as CosineBasis,
    HaarBasis as HaarBasis,
    PixelBasis as PixelBasis,
    PrincipalComponents as PrincipalComponents,
)
from ._bound.decoders import (
    AbstractDecoder as AbstractDecoder,
    DataDecoder as DataDecoder,
    DiscreteDecoder as DiscreteDecoder,
    StartDecoder as StartDecoder,
)
from ._bound.discrete_time import discrete_elbo as discrete_elbo
from ._bound.elbo import elbo as elbo
from ._bound.forms import (
    AbstractForm as AbstractForm,
    AbstractSimulatedForm as AbstractSimulatedForm,
    DenoisingScoreMatching as DenoisingScoreMatching,
    HybridScoreMatching as HybridScoreMatching,
    ImplicitScoreMatching as ImplicitScoreMatching,
    LowVariance as LowVariance,
)
from ._bound.local_form import LocalScoreMatching as LocalScoreMatching
from ._bound.path_dependence import (
    PathDependence as PathDependence,
    path_dependence as path_dependence,
)
from ._bound.result import Elbo as Elbo
from ._bound.times import (
    AbstractTimeSampler as AbstractTimeSampler,
    ImportanceTimeSampler as ImportanceTimeSampler,
    LogSNRTimeSampler as LogSNRTimeSampler,
    UniformTimeSampler as UniformTimeSampler,
    low_discrepancy as low_discrepancy,
)
from ._core.estimate import Estimate as Estimate
from ._core.gaussian import (
    Gaussian as Gaussian,
    PerturbationKernel as PerturbationKernel,
    Transition as Transition,
)
from ._core.law import AbstractLaw as AbstractLaw
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
    AbstractLinearDiffusion as AbstractLinearDiffusion,
    AbstractNonlinearDiffusion as AbstractNonlinearDiffusion,
    AbstractProcess as AbstractProcess,
    AbstractStationaryDiffusion as AbstractStationaryDiffusion,
    AbstractTarget as AbstractTarget,
    BandedDiffusion as BandedDiffusion,
    CriticalThirdOrder as CriticalThirdOrder,
    DoubleWellTarget as DoubleWellTarget,
    GaussianMixtureTarget as GaussianMixtureTarget,
    LearnedDiffusion as LearnedDiffusion,
    LearnedSchedule as LearnedSchedule,
    LinearDiffusion as LinearDiffusion,
    LinearStart as LinearStart,
    LogisticTarget as LogisticTarget,
    LogSNRInterval as LogSNRInterval,
    ProductTarget as ProductTarget,
    Recipe as Recipe,
    ScaledDiffusion as ScaledDiffusion,
    Simulation as Simulation,
    SubVPSDE as SubVPSDE,
    TargetDiffusion as TargetDiffusion,
    TimeInterval as TimeInterval,
    TimeVaryingDiffusion as TimeVaryingDiffusion,
    TwoScheduleDiffusion as TwoScheduleDiffusion,
    composed_transition as composed_transition,
    simulate_path as simulate_path,
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
    CentreDequantiser as CentreDequantiser,
    GreyLevels as GreyLevels,
    LogitTransform as LogitTransform,
    ScaleTransform as ScaleTransform,
    TruncatedNormalDequantiser as TruncatedNormalDequantiser,
    UniformDequantiser as UniformDequantiser,
    bits_per_dim as bits_per_dim,
)
from ._likelihood.classes import class_log_probabilities as class_log_probabilities
from ._likelihood.evidence import log_evidence as log_evidence
from ._likelihood.flow import (
    FlowSolution as FlowSolution,
    FlowSolver as FlowSolver,
)
from ._likelihood.log_likelihood import log_likelihood as log_likelihood
from ._likelihood.precision import PrecisionRoute as PrecisionRoute
from ._likelihood.result import Likelihood as Likelihood
from ._likelihood.routes import (
    AbstractRoute as AbstractRoute,
    AugmentedRoute as AugmentedRoute,
    CollapsedRoute as CollapsedRoute,
)
from ._metrics import (
    frechet_distance as frechet_distance,
    maximum_mean_discrepancy as maximum_mean_discrepancy,
    sliced_wasserstein as sliced_wasserstein,
)
from ._model.base import AbstractModel as AbstractModel
from ._model.denoiser import (
    AbstractDenoiser as AbstractDenoiser,
    DenoiserModel as DenoiserModel,
    PreconditionedDenoiser as PreconditionedDenoiser,
    VectorDenoiser as VectorDenoiser,
)
from ._model.divergence import (
    AbstractDivergence as AbstractDivergence,
    ExactDivergence as ExactDivergence,
    HutchinsonDivergence as HutchinsonDivergence,
)
from ._model.function import FunctionModel as FunctionModel
from ._model.guided import GuidedModel as GuidedModel
from ._model.noise import NoiseModel as NoiseModel
from ._model.observation import AbstractObservation as AbstractObservation
from ._model.pixel_law import SpikeAndSlab as SpikeAndSlab
from ._model.point import Point as Point
from ._model.simulated_point import SimulatedPoint as SimulatedPoint
from ._model.spike_and_slab import SpikeAndSlabDenoiser as SpikeAndSlabDenoiser
from ._model.start import ConditionedStartModel as ConditionedStartModel
from ._model.student_t import StudentTModel as StudentTModel
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
from ._observations import (
    Exact as Exact,
    LinearObservation as LinearObservation,
    MomentMatching as MomentMatching,
    ObservedModel as ObservedModel,
    ParticleResult as ParticleResult,
    TwistedSMC as TwistedSMC,
    observe as observe,
)
from ._sampling import (
    SSCS as SSCS,
    AbstractGrid as AbstractGrid,
    AbstractSampler as AbstractSampler,
    AbstractStepSampler as AbstractStepSampler,
    AncestralSampler as AncestralSampler,
    CustomGrid as CustomGrid,
    DiffraxSampler as DiffraxSampler,
    DPMSolver as DPMSolver,
    EDMHeun as EDMHeun,
    LangevinCorrector as LangevinCorrector,
    LogSNRGrid as LogSNRGrid,
    QuadraticGrid as QuadraticGrid,
    RhoGrid as RhoGrid,
    SampleResult as SampleResult,
    SaveAt as SaveAt,
    Trajectory as Trajectory,
    UniformGrid as UniformGrid,
    sample as sample,
)
from ._sharing.pretrained import (
    load_pretrained as load_pretrained,
    save_pretrained as save_pretrained,
)
from ._tracking.base import Tracker as Tracker, Tracking as Tracking
from ._tracking.event_files import TensorBoardTracker as TensorBoardTracker
from ._tracking.json_lines import JSONLinesTracker as JSONLinesTracker
from ._tracking.mlflow_runs import MLflowTracker as MLflowTracker
from ._tracking.trackio_runs import TrackioTracker as TrackioTracker
from ._tracking.wandb_runs import WandBTracker as WandBTracker
from ._training.evaluate import Evaluation as Evaluation, evaluate as evaluate
from ._training.examples import TrainingSet as TrainingSet
from ._training.fit import fit as fit
from ._training.load import load_run as load_run
from ._training.loop import (
    Every as Every,
    FitEvent as FitEvent,
    steps_per_call as steps_per_call,
    train as train,
)
from ._training.objective import Objective as Objective
from ._training.optimiser import make_optimiser as make_optimiser
from ._training.posthoc import posthoc_ema as posthoc_ema
from ._training.run import Run as Run
from ._training.snr_vectors import SNRVectors as SNRVectors
from ._training.state import TrainState as TrainState
from ._training.step import train_step as train_step
from ._training.stream import BatchStream as BatchStream
