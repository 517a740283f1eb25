"""The solvers by name."""

import dataclasses
from collections.abc import Callable

import diffrax as dfx

import eqmdm

from .fields import did_you_mean


_SAMPLERS = {
    "dpm": eqmdm.DPMSolver(),
    "dpm-1": eqmdm.DPMSolver(order=1),
    "dpm-3": eqmdm.DPMSolver(order=3),
    "edm-heun": eqmdm.EDMHeun(),
    "ancestral": eqmdm.AncestralSampler(),
    "sscs": eqmdm.SSCS(),
    "langevin-dpm": eqmdm.LangevinCorrector(eqmdm.DPMSolver()),
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
    """A sampler by its name."""

    name: str
    sampler: eqmdm.AbstractSampler

    @property
    def process(self) -> Callable | None:
        """The process that a Diffrax solver solves; `None` for the library's own."""
        sampler = self.sampler
        is_diffrax = isinstance(sampler, eqmdm.DiffraxSampler)
        return sampler.process if is_diffrax else None

    @property
    def needs_denoiser(self) -> bool:
        return isinstance(_innermost(self.sampler), eqmdm.EDMHeun)

    @property
    def deterministic(self) -> bool:
        """Whether a sample depends on its start alone."""
        is_flow = self.process is eqmdm.probability_flow
        return is_flow or isinstance(self.sampler, eqmdm.DPMSolver | eqmdm.EDMHeun)

    def n_evaluations(self, n_steps: int) -> int:
        """The evaluations of the network, the posterior mean at t0 included."""
        count = self.sampler.n_evaluations(n_steps)
        assert count is not None
        return count

    def steps_within(self, evaluations: int) -> int:
        """The most steps that take no more than so many evaluations; 0 if none do."""
        n_steps = 0
        while self.n_evaluations(n_steps + 1) <= evaluations:
            n_steps += 1
        return n_steps

    def sampler_on(
        self,
        grid: eqmdm.AbstractGrid | None,
        clock: eqmdm.AbstractNoiseClock | None = None,
    ) -> eqmdm.AbstractSampler:
        """The sampler with another grid and clock; `None` leaves its own."""
        return _on_grid(self.sampler, grid, clock)


def _on_grid(sampler, grid, clock):
    if isinstance(sampler, eqmdm.LangevinCorrector):
        inner = _on_grid(sampler.sampler, grid, clock)
        return eqmdm.LangevinCorrector(inner, sampler.snr, sampler.n_steps)
    if isinstance(sampler, eqmdm.DiffraxSampler):
        grid = sampler.grid if grid is None else grid
        return eqmdm.DiffraxSampler(
            sampler.solver, sampler.process, clock=clock, grid=grid
        )
    return sampler if grid is None else dataclasses.replace(sampler, grid=grid)


def _innermost(sampler):
    while isinstance(sampler, eqmdm.LangevinCorrector):
        sampler = sampler.sampler
    return sampler


def _methods() -> dict[str, Method]:
    methods = {name: Method(name, sampler) for name, sampler in _SAMPLERS.items()}
    for cls in _OF_SDES:
        name = cls.__name__.lower()
        methods[name] = Method(name, eqmdm.DiffraxSampler(cls()))
    for cls in _OF_ODES:
        name = cls.__name__.lower()
        # The bare name is the SDE where a solver serves for both.
        name = f"ode-{name}" if name in methods else name
        sampler = eqmdm.DiffraxSampler(cls(), eqmdm.probability_flow)
        methods[name] = Method(name, sampler)
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
