"""The solvers by name."""

import dataclasses
from collections.abc import Callable

import diffrax as dfx

import eqmdm
from eqmdm._model import diffrax_solvers

from .options import did_you_mean


_SAMPLERS = {
    "collapsed": eqmdm.Collapsed(),
    "collapsed-1": eqmdm.Collapsed(order=1),
    "collapsed-3": eqmdm.Collapsed(order=3),
    "collapsed-heun": eqmdm.CollapsedHeun(),
    "data-prediction": eqmdm.DataPrediction(),
    "data-prediction-1": eqmdm.DataPrediction(order=1),
    "data-prediction-3": eqmdm.DataPrediction(order=3),
    "data-prediction-cholesky": eqmdm.DataPrediction(root=eqmdm.CholeskyRoot()),
    "ancestral": eqmdm.AncestralSampler(),
    "sscs": eqmdm.SSCS(),
    "langevin-collapsed": eqmdm.LangevinCorrector(eqmdm.Collapsed()),
    "langevin-data-prediction": eqmdm.LangevinCorrector(eqmdm.DataPrediction()),
    "langevin-ancestral": eqmdm.LangevinCorrector(eqmdm.AncestralSampler()),
}
# Diffrax's, without those that are unstable with noise, need other terms or solve an
# equation in every step.
_OF_SDES = (
    dfx.Euler,
    dfx.EulerHeun,
    dfx.Heun,
    dfx.ItoMilstein,
    dfx.StratonovichMilstein,
    dfx.Midpoint,
    dfx.Ralston,
    dfx.SEA,
    dfx.SRA1,
    dfx.ShARK,
    dfx.GeneralShARK,
    dfx.SlowRK,
    dfx.SPaRK,
)
_OF_ODES = (
    dfx.Euler,
    dfx.Heun,
    dfx.Midpoint,
    dfx.Ralston,
    dfx.Bosh3,
    dfx.Tsit5,
    dfx.Dopri5,
    dfx.Dopri8,
)


@dataclasses.dataclass(frozen=True)
class Method:
    """A solver with the process that it solves; `None` for the library's samplers."""

    name: str
    solver: eqmdm.AbstractSampler | dfx.AbstractSolver
    process: Callable | None

    @property
    def needs_denoiser(self) -> bool:
        return isinstance(
            _innermost(self.solver), eqmdm.Collapsed | eqmdm.CollapsedHeun
        )

    @property
    def deterministic(self) -> bool:
        """Whether a sample depends on its start alone."""
        without_noise = eqmdm.AbstractMultistep | eqmdm.CollapsedHeun
        is_flow = self.process is eqmdm.probability_flow
        return is_flow or isinstance(self.solver, without_noise)

    def n_evaluations(self, n_steps: int) -> int:
        """Of the network, the posterior mean at the cut included."""
        if isinstance(self.solver, eqmdm.AbstractSampler):
            return self.solver.n_evaluations(n_steps)
        count = diffrax_solvers.n_evaluations(self.solver, n_steps)
        assert isinstance(count, int)
        return count + 1

    def steps_within(self, evaluations: int) -> int:
        """The most steps that take no more than so many evaluations; 0 if none do."""
        n_steps = 0
        while self.n_evaluations(n_steps + 1) <= evaluations:
            n_steps += 1
        return n_steps

    @property
    def options(self) -> dict:
        """What `eqmdm.sample` is to be called with."""
        options = {"solver": self.solver}
        return options if self.process is None else options | {"process": self.process}


def _innermost(solver):
    while isinstance(solver, eqmdm.LangevinCorrector):
        solver = solver.sampler
    return solver


def _methods() -> dict[str, Method]:
    methods = {name: Method(name, s, None) for name, s in _SAMPLERS.items()}
    for cls in _OF_SDES:
        name = cls.__name__.lower()
        methods[name] = Method(name, cls(), eqmdm.reverse_sde)
    for cls in _OF_ODES:
        name = cls.__name__.lower()
        # The bare name is the SDE where a solver serves for both.
        name = f"ode-{name}" if name in methods else name
        methods[name] = Method(name, cls(), eqmdm.probability_flow)
    return methods


_METHODS = _methods()
NAMES = tuple(_METHODS)


def find_method(name: str, *, argument: str = "solver") -> Method:
    """The method of that name, which a user gave as `argument`.

    **Raises:**

    `ValueError`, with the names nearest to one that does not exist.
    """
    if name in _METHODS:
        return _METHODS[name]
    bare = _METHODS.get(name.removeprefix("ode-"))
    if bare is not None and bare.process is not eqmdm.probability_flow:
        raise ValueError(
            f"`{argument}` must be one for ODEs where it has the prefix ode-; got "
            f"{name!r}, and {bare.name} is not. Take {bare.name} itself, or "
            f"{', '.join(n for n in NAMES if n.startswith('ode-'))}."
        )
    raise ValueError(
        f"`{argument}` must be the name of a solver; got {name!r}."
        f"{did_you_mean(name, NAMES)} The names are {', '.join(NAMES)}."
    )
