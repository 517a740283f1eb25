"""A process of every kind, with a model that is exact for normal data."""

import functools
import math
from typing import NamedTuple, final

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from conditioned_starts import end_divergence, exact_model, langevin
from diffusions import made_up, two_schedule
from fokker_planck import FokkerPlanck, mixture_density
from jax.scipy.special import gammaln
from references import VARIANCE, normal_denoiser

import eqmdm


SHAPE = (2,)


class Case(NamedTuple):
    """A model that is exact for normal data of the shape `SHAPE`.

    - `end_divergence`: that of the law of the state at t1 from the prior, in nats.
    - `variance`: of the data.
    """

    model: eqmdm.AbstractModel
    end_divergence: float
    variance: float = VARIANCE


@final
class QuarticTarget(eqmdm.AbstractTarget):
    """The density proportional to exp(-y^4 / 2), the stationary one of `Cubic`."""

    @property
    def n_vars(self):
        return 1

    @property
    def covariance(self):
        gamma = math.gamma
        return np.array([[math.sqrt(2) * gamma(0.75) / gamma(0.25)]])

    def sample(self, shape, *, key):
        key_size, key_sign = jr.split(key)
        fourth = 2 * jr.gamma(key_size, 0.25, (1, *shape))
        return jr.rademacher(key_sign, (1, *shape), fourth.dtype) * fourth**0.25

    def log_density(self, y):
        log_volume = 0.25 * math.log(2) + gammaln(0.25) - math.log(2)
        return jnp.sum(-0.5 * y**4 - log_volume)


@final
class Cubic(eqmdm.AbstractNonlinearDiffusion):
    """A drift of the user's own, to its stationary law."""

    prior: eqmdm.AbstractLaw = QuarticTarget()
    reference: eqmdm.AbstractLinearDiffusion = eqmdm.VPSDE(
        schedule=eqmdm.ConstantSchedule(1.0), interval=eqmdm.TimeInterval(2e-3, 3.0)
    )
    simulation: eqmdm.Simulation = eqmdm.Simulation(128)

    def drift(self, t, y, args=None):
        return -(y**3)

    def diffusion_matrix(self, t):
        return jnp.ones((1, 1), t.dtype)


def turning():
    """A diffusion whose matrices vary in time, stationary for N(0, I)."""
    drift = lambda t: (
        -4 * jnp.stack([jnp.stack([0 * t, jnp.cos(3 * t)]), _row(-jnp.cos(3 * t), t)])
    )
    noise = lambda t: jnp.sqrt(8 * (1 + t)) * jnp.asarray([[0.0], [1.0]], t.dtype)
    interval = eqmdm.TimeInterval(1e-3, 1.5)
    return eqmdm.TimeVaryingDiffusion(
        drift, noise, prior_covariance=np.eye(2), interval=interval
    )


def _row(turn, t):
    return jnp.stack([turn, 1 + t])


def banded():
    slow, fast = (eqmdm.CLD(schedule=eqmdm.LinearSchedule(0.1, b)) for b in (8.0, 12.0))
    return eqmdm.BandedDiffusion([slow, fast], bands=[0, 1])


def targeted(target):
    return eqmdm.TargetDiffusion(
        [[0.0]],
        [[1.0]],
        target,
        schedule=eqmdm.LinearSchedule(0.1, 6.0),
        interval=eqmdm.TimeInterval(2e-3, 1.0),
        simulation=eqmdm.Simulation(128),
    )


LINEAR = {
    "VPSDE": eqmdm.VPSDE,
    "SubVPSDE": eqmdm.SubVPSDE,
    "VESDE": eqmdm.VESDE,
    "CLD": eqmdm.CLD,
    "ALDA": eqmdm.ALDA,
    "MALDA": eqmdm.MALDA,
    "PSLD": eqmdm.PSLD,
    "CriticalThirdOrder": eqmdm.CriticalThirdOrder,
    "LearnedDiffusion": lambda: eqmdm.LearnedDiffusion(2, key=jr.key(2)),
    "LinearDiffusion": made_up,
    "TwoScheduleDiffusion": two_schedule,
    "TimeVaryingDiffusion": turning,
    "BandedDiffusion": banded,
    "ScaledDiffusion": lambda: eqmdm.ScaledDiffusion(eqmdm.CLD(), 2.0),
    "LinearStart": lambda: eqmdm.LinearStart(langevin(), [SLOPE]),
}
SLOPE = 0.5


def _linear_case(make):
    diffusion = make()
    # It may be told the log-SNR of every coordinate.
    denoiser = eqmdm.VectorDenoiser(normal_denoiser)
    return Case(eqmdm.DenoiserModel(denoiser, diffusion), _end_divergence(diffusion))


def _end_divergence(diffusion):
    """The divergence between two normal laws, summed over the coordinates."""
    kernel = diffusion.compute_kernel(diffusion.t1)
    n_vars, total = diffusion.n_vars, 0.0
    wide = lambda m, n: np.broadcast_to(
        np.asarray(m).reshape(n_vars, n, -1), (n_vars, n, 2)
    )
    a, root = wide(kernel.mean_map, 1), wide(kernel.root, kernel.root.shape[1])
    prior = wide(diffusion.prior.root, n_vars)
    for i in range(2):
        found = VARIANCE * a[..., i] @ a[..., i].T + root[..., i] @ root[..., i].T
        ratio = np.linalg.solve(prior[..., i] @ prior[..., i].T, found)
        total += 0.5 * (np.trace(ratio) - n_vars - np.linalg.slogdet(ratio)[1])
    return total


def _student(nu, *, hidden):
    # Given a precision the process ends at a log-SNR that is shifted by its logarithm.
    # The divergence is linear in the SNR at t1, up to 1e-7, and the mean of the
    # precision is 1.
    case = _linear_case(eqmdm.VPSDE)
    model = eqmdm.StudentTModel(case.model, nu, hidden=hidden)
    return case._replace(model=model)


def _conditioned():
    return Case(exact_model(SLOPE, langevin()), 2 * end_divergence(SLOPE))


def _normal_target():
    """The process towards a normal target, which is CLD without a kernel."""
    D = np.diag([0.0, 2.0])
    target = eqmdm.GaussianMixtureTarget([1.0], np.zeros((1, 2)), [np.eye(2)])
    interval = eqmdm.TimeInterval(2e-3, 1.0)
    skew = [[0.0, -1.0], [1.0, 0.0]]
    process = eqmdm.TargetDiffusion(
        skew, D, target, interval=interval, simulation=eqmdm.Simulation(128)
    )
    linear = eqmdm.LinearDiffusion(skew, D, interval=interval)
    exact = eqmdm.DenoiserModel(normal_denoiser, linear)
    score = lambda t, y: exact.score_at(linear.compute_kernel(t), y)
    return Case(eqmdm.FunctionModel(score, process), _end_divergence(linear))


def _on_a_grid(process, dissipation, clock, reach, variance=0.3):
    """With the score from the Fokker-Planck equation."""
    density = mixture_density((1.0,), (0.0,), (variance**0.5,))
    grid = FokkerPlanck(
        process.prior, density, dissipation=dissipation, reach=reach, n_cells=1200
    )
    t0, t1 = float(process.t0), float(process.t1)
    model = eqmdm.FunctionModel(grid.score(clock, 0.9 * t0, t1), process)
    return Case(model, 2 * grid.divergence_from_target(clock(t1)), variance)


def _clock(t):
    return 0.1 * t + 0.5 * 5.9 * t**2


MAKERS = {name: functools.partial(_linear_case, make) for name, make in LINEAR.items()}
MAKERS |= {
    "StudentTModel, shown": lambda: _student(4.0, hidden=False),
    # Nearly normal, since only the limit has a closed form.
    "StudentTModel, hidden": lambda: _student(1e5, hidden=True),
    "ConditionedStartModel": _conditioned,
    "TargetDiffusion, normal": _normal_target,
    "TargetDiffusion, logistic": lambda: _on_a_grid(
        targeted(eqmdm.LogisticTarget()), 1.0, _clock, 14.0, VARIANCE
    ),
    "TargetDiffusion, double well": lambda: _on_a_grid(
        targeted(eqmdm.DoubleWellTarget(1.0, 1.0)), 1.0, _clock, 2.9
    ),
    "AbstractNonlinearDiffusion": lambda: _on_a_grid(Cubic(), 0.5, lambda t: t, 2.9),
}


@functools.cache
def make_case(name):
    return MAKERS[name]()


def data(case, n, key):
    return case.variance**0.5 * jr.normal(key, (n, *SHAPE), jnp.float64)


def log_density(case, x):
    values = -0.5 * x**2 / case.variance
    values -= 0.5 * math.log(2 * math.pi * case.variance)
    return jnp.sum(values, axis=-1)
