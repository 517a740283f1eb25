"""The settings of an evaluation: options completed and checked against the run."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, cast

import diffrax as dfx
import jax.numpy as jnp

from eqmdm import nn

from ..._core.hints import did_you_mean
from ..._core.own import find_own, is_own
from ..._model.denoiser import pixel_law
from ..._model.student_t import normal_model
from ..clocks import check_clock
from ..names import ClockName
from ..trained import TrainedRun
from .options import EvaluateOptions


# Solvers that estimate their own error, as adaptive steps require.
SOLVERS = {
    "tsit5": dfx.Tsit5,
    "dopri5": dfx.Dopri5,
    "dopri8": dfx.Dopri8,
    "bosh3": dfx.Bosh3,
    "heun": dfx.Heun,
}
# The divergence is exact by default up to this dimension: it takes one derivative per
# dimension, which is too many for images.
_EXACT_UP_TO = 16
_PROBES = 4
# The library accepts no tolerance below this multiple of the machine epsilon.
_SMALLEST_TOLERANCE = 4
# The options that only some routes, or only another diffusion, use.
_AUGMENTED = ("aux_draws", "importance_weighted")
_ODE = ("dequantisation", "divergence", "probes", "solver", "clock", "tolerance")
_ODE += ("max_steps",)
_BOUND = ("decoder", "focus")
_ANOTHER = ("diffusion", "log_snr_range", "t_range")
# In the order of a comparison, which starts with the bound used in training.
_ROUTES = ("elbo", "augmented", "collapsed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings(EvaluateOptions):
    """Options with all defaults filled in."""

    route: Literal["collapsed", "augmented", "elbo"] = dataclasses.field()
    examples: int = dataclasses.field()
    draws: int = dataclasses.field()
    divergence: Literal["exact", "hutchinson"] = dataclasses.field()
    probes: int = dataclasses.field()
    tolerance: float = dataclasses.field()
    clock: ClockName = dataclasses.field()
    output_dir: Path = dataclasses.field()
    of_class: int | None = None
    """The class that every example is evaluated given, if not its own."""

    def identity(self) -> dict[str, Any]:
        """The settings that the results depend on."""
        names = ["split", "first", "examples", "route", "draws", "seed"]
        names += _ODE if self.route != "elbo" else ()
        names += _AUGMENTED if self.route == "augmented" else ()
        names += [name for name in _BOUND if getattr(self, name) is not None]
        names += _ANOTHER if self.is_under_another else ()
        names += () if self.ema else ("ema",)
        names += ("unconditional",) if self.unconditional else ()
        names += () if self.of_class is None else ("of_class",)
        names += () if self.ema_length is None else ("ema_length",)
        return {name: getattr(self, name) for name in names}


def by_route(options: EvaluateOptions, trained: TrainedRun) -> list[EvaluateOptions]:
    """The options of each route to evaluate: one, or all that suit the run."""
    if options.route != "all":
        return [options]
    routes = [r for r in _ROUTES if r != "collapsed" or trained.is_denoiser]
    return [_of_route(options, route, trained) for route in routes]


def by_class(settings: EvaluateSettings, trained: TrainedRun) -> list[EvaluateSettings]:
    """The settings of the evaluations given each class, in directories of their own.

    **Raises:** `ValueError` unless the model is conditioned on the labels.
    """
    kind = trained.condition
    if not isinstance(kind, nn.ClassCondition) or trained.dataset.labels is None:
        raise ValueError(
            "`classify` must be left out for this run, whose model is not conditioned "
            "on labels. Train with --condition label."
        )
    if settings.unconditional:
        raise ValueError("`classify` and `unconditional` must not both be given.")
    return [
        dataclasses.replace(
            settings, of_class=c, output_dir=settings.output_dir / f"class-{c}"
        )
        for c in range(kind.n_classes)
    ]


def comparison_dir(options: EvaluateOptions) -> Path:
    """The directory of the comparison of all routes."""
    if options.output_dir is not None:
        return options.output_dir / "comparison"
    names = ["comparison", options.split, *_model_names(options)]
    return options.run / "-".join(names)


def resolve(options: EvaluateOptions, trained: TrainedRun) -> EvaluateSettings:
    """The options with defaults for everything not given.

    **Raises:** `ValueError` for options that do not suit the run.
    """
    if options.unconditional:
        trained.check_missing("unconditional")
    route = options.route or ("collapsed" if trained.is_denoiser else "augmented")
    _check_route(options, route, trained)
    n_split = len(getattr(trained.dataset, options.split))
    _check_range(options, n_split)
    n_examples = options.examples or n_split - options.first
    divergence = options.divergence
    if divergence is None:
        exact = math.prod(trained.dataset.shape) <= _EXACT_UP_TO
        divergence = "exact" if exact and options.probes is None else "hutchinson"
    what = "classification" if options.classify else "evaluation"
    defaults = {
        "route": route,
        "examples": n_examples,
        "draws": 8 if route == "elbo" else 1,
        "divergence": divergence,
        "probes": 0 if divergence == "exact" else _PROBES,
        "tolerance": 1e-5,
        "clock": _default_clock(route, trained),
        "output_dir": options.run
        / "-".join([what, route, options.split, *_model_names(options)]),
    }
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    given = {name: value for name, value in given.items() if value is not None}
    # A batch is not padded beyond the number of examples.
    given["batch_size"] = min(options.batch_size, n_examples)
    return EvaluateSettings(**(defaults | given))


def under_chosen_diffusion(options: EvaluateOptions, trained: TrainedRun) -> TrainedRun:
    """The run under the diffusion that the options choose."""
    if not options.is_under_another:
        return trained
    return trained.under(
        options.diffusion or trained.options.diffusion,
        log_snr_range=options.log_snr_range,
        t_range=options.t_range,
    )


def find_solver(name: str) -> dfx.AbstractAdaptiveSolver:
    """The ODE solver with this name, or the user's own as module:name.

    **Raises:** `ValueError` for an unknown name, or a solver without error estimates.
    """
    kind = "an ODE solver that estimates its error"
    if name in SOLVERS:
        return SOLVERS[name]()
    if not is_own(name):
        raise ValueError(
            f"`solver` must be {kind}, or your own as module:name; got {name!r}."
            f"{did_you_mean(name, SOLVERS)} The names are {', '.join(SOLVERS)}."
        )
    made = find_own(name, argument="solver", kind=kind)
    if not isinstance(made, dfx.AbstractSolver) and callable(made):
        made = made()
    if not isinstance(made, dfx.AbstractAdaptiveSolver):
        raise ValueError(
            f"`solver` must be {kind} as module:name; got {name}, which is or makes a "
            f"{type(made).__name__}."
        )
    return made


def _model_names(options: EvaluateOptions) -> list[str]:
    """The parts of a directory's name for a model other than the run's own."""
    ranges = ("snr", options.log_snr_range), ("t", options.t_range)
    names = [f"{kind}{r[0]:g}to{r[1]:g}" for kind, r in ranges if r is not None]
    names += [] if options.ema else ["last"]
    names += ["unconditional"] if options.unconditional else []
    names += [] if options.ema_length is None else [f"ema{options.ema_length:g}"]
    return [*([options.diffusion] if options.diffusion else []), *names]


def _of_route(
    options: EvaluateOptions, route: str, trained: TrainedRun
) -> EvaluateOptions:
    """The options for one route, without those for the other routes."""
    unused = _unused(route)
    if route != "elbo" and trained.dataset.n_levels is None:
        unused += ("draws",)
    if route == "collapsed" and options.clock == "time":
        unused += ("clock",)
    defaults = {f.name: f.default for f in dataclasses.fields(options)}
    changes: dict[str, Any] = {name: defaults[name] for name in unused}
    if options.output_dir is not None:
        changes["output_dir"] = options.output_dir / route
    return dataclasses.replace(options, route=cast(Any, route), **changes)


def _unused(route: str) -> tuple[str, ...]:
    """The names of the options that the route does not use."""
    unused = () if route == "augmented" else _AUGMENTED
    return unused + (_ODE if route == "elbo" else _BOUND)


def _check_route(options: EvaluateOptions, route: str, trained: TrainedRun) -> None:
    unused = _unused(route)
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in unused and value != field.default:
            raise ValueError(
                f"`{field.name}` must be left out on the route {route}, which does "
                f"not use it; got {value}."
            )
    if route == "elbo":
        return
    if route == "collapsed" and not trained.is_denoiser:
        raise ValueError(
            "`route` must be augmented or elbo for this run, whose score is free; "
            "got collapsed, which needs a denoiser of the data."
        )
    if route == "collapsed" and options.clock == "time":
        raise ValueError(
            "`clock` must be angle or log_snr on the route collapsed, whose ODE "
            "runs in the noise level and not in the diffusion's time; got time."
        )
    if route == "augmented" and options.clock is not None:
        check_clock(options.clock, trained)
    images = trained.dataset.n_levels is not None
    for name in ("dequantisation", "draws"):
        if not images and getattr(options, name) is not None:
            raise ValueError(
                f"`{name}` must be left out for points on the route {route}: they "
                "are continuous already and need no dequantisation; got "
                f"{getattr(options, name)}."
            )
    least = _SMALLEST_TOLERANCE * float(jnp.finfo(trained.dtype).eps)
    tolerance = options.tolerance
    if tolerance is not None and not least <= tolerance < 1:
        raise ValueError(
            f"`tolerance` must be at least {least:.1e}, which {trained.dtype} can "
            f"reach, and below 1; got {tolerance:g}. 1e-5 is usual."
        )


def _default_clock(route: str, trained: TrainedRun) -> ClockName:
    if route != "collapsed":
        return "time"
    # As `eqmdm.log_likelihood` chooses it.
    return "angle" if pixel_law(normal_model(trained.model)) is None else "log_snr"


def _check_range(options: EvaluateOptions, n_split: int) -> None:
    if options.first >= n_split:
        raise ValueError(
            f"`first` must be below {n_split}, the number of examples in the "
            f"{options.split} split; got {options.first}."
        )
    if options.examples is not None and options.first + options.examples > n_split:
        raise ValueError(
            f"`examples` must be at most {n_split - options.first}: the "
            f"{options.split} split has {n_split}, and `first` skips {options.first}; "
            f"got {options.examples}."
        )
