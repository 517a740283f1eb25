"""Pages of the library: every public name, from its docstring."""

import ast
import inspect
from pathlib import Path
from typing import Any

import eqmdm


# Of each page: its file, title, introduction and names.
PAGES: dict[str, tuple[str, str, str]] = {
    "diffusions": (
        "Diffusions",
        "The named processes, and processes of your own from their matrices. All are "
        "[`eqmdm.AbstractLinearDiffusion`][]s, whose methods are shown once, there.",
        "LinearDiffusion VPSDE SubVPSDE VESDE CLD ALDA MALDA PSLD CriticalThirdOrder "
        "LearnedDiffusion BandedDiffusion TwoScheduleDiffusion TimeVaryingDiffusion "
        "LinearStart ScaledDiffusion composed_transition Recipe "
        "AbstractStationaryDiffusion AbstractLinearDiffusion",
    ),
    "nonlinear": (
        "Processes with other drifts",
        "Processes whose drift is not linear, by the law towards which they run or by "
        "their drift. They are simulated, because they have no kernels.",
        "TargetDiffusion LogisticTarget DoubleWellTarget GaussianMixtureTarget "
        "ProductTarget AbstractTarget AbstractNonlinearDiffusion Simulation "
        "simulate_path SimulatedPoint AbstractProcess AbstractLaw",
    ),
    "schedules": (
        "Schedules and intervals",
        "The rate at which a process runs, the times between which it is used, and "
        "clocks that replace its time.",
        "ConstantSchedule LinearSchedule CosineSchedule LearnedSchedule "
        "AbstractSchedule TimeInterval LogSNRInterval LogSNRClock AngleClock "
        "AbstractNoiseClock",
    ),
    "laws": (
        "Kernels and laws",
        "The normal laws that a linear diffusion gives, with their factors.",
        "PerturbationKernel Transition Gaussian Point",
    ),
    "models": (
        "Models",
        "A network together with its diffusion. Every function of the library takes a "
        "model.",
        "DenoiserModel NoiseModel FunctionModel GuidedModel PreconditionedDenoiser "
        "VectorDenoiser SpikeAndSlabDenoiser SpikeAndSlab StudentTModel "
        "ConditionedStartModel AbstractDenoiser AbstractModel",
    ),
    "networks": (
        "Networks",
        "Networks on one example. Any other callable of the same arguments serves.",
        "nn.MLP nn.UNet nn.ClassCondition nn.ArrayCondition nn.condition_for "
        "nn.missing_like nn.AbstractConditionalNetwork nn.NoiseLevelMaps "
        "nn.NoiseLevelFeatures nn.StartMean",
    ),
    "bounds": (
        "Bounds",
        "The evidence lower bound, term by term; its forms, decoders and times.",
        "elbo Elbo discrete_elbo LowVariance HybridScoreMatching "
        "DenoisingScoreMatching ImplicitScoreMatching LocalScoreMatching "
        "AbstractSimulatedForm AbstractForm DataDecoder "
        "StartDecoder DiscreteDecoder AbstractDecoder LogSNRTimeSampler "
        "ImportanceTimeSampler UniformTimeSampler AbstractTimeSampler low_discrepancy "
        "path_dependence PathDependence Estimate",
    ),
    "likelihoods": (
        "Likelihoods",
        "Exact likelihoods by the probability-flow ODE, and what follows from them.",
        "log_likelihood Likelihood CollapsedRoute AugmentedRoute PrecisionRoute "
        "AbstractRoute "
        "class_log_probabilities log_evidence ExactDivergence HutchinsonDivergence "
        "AbstractDivergence FlowSolver FlowSolution",
    ),
    "terms": (
        "Diffrax terms",
        "The processes as terms for `diffrax.diffeqsolve`.",
        "forward_sde reverse_sde probability_flow Problem",
    ),
    "sampling": (
        "Sampling",
        "Samples by one function, and the samplers and step grids to choose from.",
        "sample SampleResult SaveAt Trajectory DPMSolver EDMHeun AncestralSampler SSCS "
        "LangevinCorrector DiffraxSampler LogSNRGrid QuadraticGrid UniformGrid RhoGrid "
        "CustomGrid AbstractGrid AbstractStepSampler AbstractSampler",
    ),
    "observations": (
        "Observations",
        "Models of the data given a linear observation, exact and approximate.",
        "LinearObservation observe.mask observe.downsample observe.blur "
        "observe.fourier observe.dense Exact MomentMatching TwistedSMC ParticleResult "
        "ObservedModel AbstractObservation",
    ),
    "bases": (
        "Orthonormal bases",
        "Bases in which every coefficient of the data may have its own diffusion.",
        "PixelBasis HaarBasis CosineBasis PrincipalComponents AbstractBasis",
    ),
    "levels": (
        "Grey levels",
        "The encoding of integers as continuous data, with its Jacobian.",
        "GreyLevels ScaleTransform LogitTransform AbstractTransform UniformDequantiser "
        "TruncatedNormalDequantiser CentreDequantiser AbstractDequantiser bits_per_dim",
    ),
    "data": (
        "Data",
        "Data sets by name, and your own, by one function.",
        "data.load data.NAMES data.Dataset data.Labels data.Conditions "
        "data.Standardisation data.ImageFiles data.random_flip data.shuffled_indices "
        "data.is_function data.title",
    ),
    "training": (
        "Training",
        "One function that trains, and the parts that it is made of.",
        "fit train FitEvent Every Objective SNRVectors make_optimiser TrainState "
        "train_step steps_per_call TrainingSet BatchStream evaluate Evaluation "
        "posthoc_ema",
    ),
    "runs": (
        "Runs and sharing",
        "Directories of trained models: checkpoints, and files for others to load.",
        "Run load_run save_pretrained load_pretrained",
    ),
    "tracking": (
        "Tracking",
        "Where the progress of training is sent.",
        "Tracking Tracker JSONLinesTracker TensorBoardTracker WandBTracker "
        "MLflowTracker TrackioTracker",
    ),
    "devices": (
        "Several devices",
        "The distribution of models, batches and examples over devices.",
        "device_mesh distribute divide_batch on_host",
    ),
    "quality": (
        "Quality of samples",
        "Distances between two sets of samples, each with its standard error.",
        "sliced_wasserstein maximum_mean_discrepancy frechet_distance",
    ),
}
# These show the members that they inherit; the others only their own.
_WITH_ALL_MEMBERS = ("AbstractLinearDiffusion", "AbstractModel")


def public_names() -> set[str]:
    """All public names below `eqmdm`, with those of its modules `data`, `nn` and
    `observe`."""
    names = set()
    for name in dir(eqmdm):
        value = getattr(eqmdm, name)
        if inspect.ismodule(value):
            # An import hook, as that of the tests, may add modules of its own.
            if not value.__name__.startswith(f"{eqmdm.__name__}."):
                continue
            own = (n for n in vars(value) if not n.startswith("_"))
            names |= {f"{name}.{n}" for n in own if _is_public(value, n)}
        elif name != "__version__":
            names.add(name)
    return names


def _is_public(module: Any, name: str) -> bool:
    """Whether a name of a public module is for users, rather than an import."""
    value = getattr(module, name)
    if inspect.ismodule(value):
        return False
    # The packages re-export their public names; `observe` is a file of functions.
    return hasattr(module, "__path__") or (
        inspect.isfunction(value) and value.__module__ == module.__name__
    )


def reference_pages() -> dict[str, str]:
    """The Markdown of each page by its path.

    **Raises:** `ValueError` unless the pages have every public name exactly once.
    """
    named = [name for *_, names in PAGES.values() for name in names.split()]
    if twice := {name for name in named if named.count(name) > 1}:
        raise ValueError(f"names on two pages of the reference: {sorted(twice)}.")
    if differing := set(named) ^ public_names():
        raise ValueError(
            "the pages of the reference must have every public name, and no other; "
            f"they differ in {', '.join(sorted(differing))}."
        )
    pages = {"reference/index.md": _index(), "reference/types.md": _types()}
    for file, (title, introduction, names) in PAGES.items():
        rows = [_row(name) for name in names.split()]
        parts = [f"# {title}", introduction, _table(rows)]
        parts += [_entry(name) for name in names.split()]
        pages[f"reference/{file}.md"] = "\n\n".join(parts) + "\n"
    return pages


def _index() -> str:
    parts = ["# Reference", _ABOUT]
    for file, (title, _, names) in PAGES.items():
        links = ", ".join(f"[`{name}`][eqmdm.{name}]" for name in names.split())
        parts.append(f"**[{title}]({file}.md)**: {links}")
    return "\n\n".join(parts) + "\n"


_ABOUT = """
Every public name, from its docstring. Names are used as `eqmdm.NAME`. Shapes are
[jaxtyping](types.md) annotations: a state is `vars *data`, with the data in row 0.
Functions take one example and are batched with `jax.vmap`. The options of the command
line are in [Programs](programs/index.md).
""".strip()


def _types() -> str:
    """The aliases of types that signatures use, with their definitions."""
    module = Path(eqmdm.__file__).parent / "_core" / "types.py"
    source = module.read_text(encoding="utf-8")
    parts = ["# Types", _ABOUT_TYPES]
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert node.value is not None
            name, value = node.target.id, ast.unparse(node.value).replace("'", '"')
            anchor = f"{{ #eqmdm._core.types.{name} }}"
            parts.append(f"### `{name}` {anchor}\n\n```python\n{name} = {value}\n```")
    return "\n\n".join(parts) + "\n"


_ABOUT_TYPES = """
The short names that signatures use for arrays, in the notation of `jaxtyping`: the kind
of number, then the names of the axes. `*data` stands for all axes of one example, and
`*coordinates` for none, or for those of the data where matrices differ by coordinate.
""".strip()


def _table(rows: list[str]) -> str:
    return "\n".join(["| name | summary |", "| --- | --- |", *rows])


def _row(name: str) -> str:
    return f"| [`{name}`][eqmdm.{name}] | {_summary(name)} |"


def _summary(name: str) -> str:
    """The first sentence of a docstring, in one line."""
    if name == "data.NAMES":
        return "The names of the data sets that are known."
    value: Any = eqmdm
    for part in name.split("."):
        value = getattr(value, part)
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    end = text.find(". ")
    return (text if end < 0 else text[: end + 1]).replace("|", "\\|")


def _entry(name: str) -> str:
    lines = [f"::: eqmdm.{name}"]
    if name in _WITH_ALL_MEMBERS:
        lines += ["    options:", "      inherited_members: true"]
    return "\n".join(lines)
