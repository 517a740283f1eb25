"""The solvers, by name."""

import dataclasses
import functools
from collections.abc import Callable

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr

import eqmdm

from .._core.hints import did_you_mean
from .._core.own import find_own, is_own


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
    """A sampler and its name."""

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
        """Whether a sample is determined by its starting point."""
        is_flow = self.process is eqmdm.probability_flow
        return is_flow or isinstance(self.sampler, eqmdm.DPMSolver | eqmdm.EDMHeun)

    def n_evaluations(self, n_steps: int) -> int | None:
        """The number of network evaluations, including the posterior mean at t0; `None`
        if it varies."""
        count = self.sampler.n_evaluations(n_steps)
        if count is None and self._counted is not None:
            a_step, besides = self._counted
            count = a_step * n_steps + besides
        return count

    def steps_within(self, evaluations: int) -> int:
        """The most steps that fit in this number of evaluations; 0 if none does.

        **Raises:** `ValueError` if the number of evaluations varies.
        """
        n_steps = 0
        while self._fixed_evaluations(n_steps + 1) <= evaluations:
            n_steps += 1
        return n_steps

    def least_evaluations(self, argument: str) -> int:
        """The number of evaluations that one step takes.

        **Raises:** `ValueError`, naming the `argument`, if that number varies.
        """
        return self._fixed_evaluations(1, argument)

    def _fixed_evaluations(self, n_steps: int, argument: str = "solver") -> int:
        count = self.n_evaluations(n_steps)
        if count is None:
            raise ValueError(
                f"`{argument}` must take as many evaluations of the network in every "
                f"step; those of {self.name} vary. Choose its steps by the number of "
                "its evaluations, as the method `n_evaluations` of a sampler says it."
            )
        return count

    @functools.cached_property
    def _counted(self) -> tuple[int, int] | None:
        """The evaluations per step and the constant rest, of a solver that does not
        declare them: counted in runs of one, two and three steps. `None` if they are
        not linear in the number of steps, or depend on the problem."""
        solver = getattr(self.sampler, "solver", None)
        if isinstance(_innermost_solver(solver), dfx.AbstractImplicitSolver):
            return None
        one, two, three = (_count_evaluations(self.sampler, n) for n in (1, 2, 3))
        return (two - one, 2 * one - two) if three - two == two - one else None

    def sampler_on(
        self,
        grid: eqmdm.AbstractGrid | None,
        clock: eqmdm.AbstractNoiseClock | None = None,
    ) -> eqmdm.AbstractSampler:
        """The sampler with another grid and clock; `None` keeps its own."""
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
    if grid is None:
        return sampler
    if not hasattr(sampler, "grid"):
        raise ValueError(
            "`grid` must be left out for a sampler that has none; got one for "
            f"{type(sampler).__name__}, whose method `times` chooses its own."
        )
    return dataclasses.replace(sampler, grid=grid)


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
        # For a solver that suits both, the bare name means the SDE.
        name = f"ode-{name}" if name in methods else name
        sampler = eqmdm.DiffraxSampler(cls(), eqmdm.probability_flow)
        methods[name] = Method(name, sampler)
    return methods


_METHODS = _methods()
NAMES = tuple(_METHODS)


def find_method(name: str, *, argument: str = "solver") -> Method:
    """The method that the user named in `argument`: one of `NAMES`, or the user's own
    as module:name, with the prefix ode- for the probability flow.

    **Raises:**

    `ValueError`, with the closest names, for a name that does not exist.
    """
    if name in _METHODS:
        return _METHODS[name]
    if is_own(name):
        return _own_method(name, argument)
    bare = _METHODS.get(name.removeprefix("ode-"))
    if bare is not None and bare.process is not eqmdm.probability_flow:
        raise ValueError(
            f"`{argument}` must be an ODE solver if it has the prefix ode-; got "
            f"{name!r}, and {bare.name} is not one. Use {bare.name} itself, or "
            f"{', '.join(n for n in NAMES if n.startswith('ode-'))}."
        )
    raise ValueError(
        f"`{argument}` must be the name of a solver, or your own as module:name; got "
        f"{name!r}.{did_you_mean(name, NAMES)} The names are {', '.join(NAMES)}."
    )


@functools.cache
def _own_method(name: str, argument: str) -> Method:
    """The method of the user's solver or sampler, or of a callable that makes one."""
    kind = "a solver of Diffrax's, a sampler, or a function that makes one,"
    bare = name.removeprefix("ode-")
    made = find_own(bare, argument=argument, kind=kind)
    # A class or a function that makes one.
    if not isinstance(made, dfx.AbstractSolver | eqmdm.AbstractSampler):
        made = made() if callable(made) else made
    if isinstance(made, eqmdm.AbstractSampler):
        if name != bare:
            raise ValueError(
                f"`{argument}` must not have the prefix ode- with a sampler, which "
                f"defines its own process; got {name}. Use {bare}."
            )
        return Method(name, made)
    if not isinstance(made, dfx.AbstractSolver):
        raise ValueError(
            f"`{argument}` must be {kind} as module:name; got {name}, which is or "
            f"makes a {type(made).__name__}."
        )
    # As above, the bare name means the SDE for a solver that suits both.
    is_flow = name != bare or not _takes_noise(made)
    process = eqmdm.probability_flow if is_flow else eqmdm.reverse_sde
    return Method(name, eqmdm.DiffraxSampler(made, process))


def _takes_noise(solver: dfx.AbstractSolver) -> bool:
    kinds = dfx.AbstractItoSolver | dfx.AbstractStratonovichSolver
    return isinstance(_innermost_solver(solver), kinds)


def _innermost_solver(solver):
    while isinstance(solver, dfx.AbstractWrappedSolver):
        solver = solver.solver
    return solver


def _count_evaluations(sampler: eqmdm.AbstractSampler, n_steps: int) -> int:
    """The number of network calls for one sample of a model of data at -1 and 1."""
    calls = []

    def network(log_snr, z):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.tanh(jnp.exp(log_snr) * z)

    model = eqmdm.DenoiserModel(network, eqmdm.VPSDE())
    settings = {"key": jr.key(0), "n_samples": 1, "n_steps": n_steps}
    jax.block_until_ready(eqmdm.sample(model, (1,), sampler=sampler, **settings))
    jax.effects_barrier()
    return len(calls)
