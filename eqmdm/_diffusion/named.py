"""The named diffusions of the literature, as (Q, D) recipes."""

import math
from collections.abc import Sequence
from typing import TypeAlias, final

import numpy as np

from .interval import Interval
from .matrices import check_constant
from .recipe import Recipe
from .schedule import AbstractSchedule, ConstantSchedule
from .stationary import AbstractRecipeDiffusion


_Schedule: TypeAlias = AbstractSchedule | None
_Interval: TypeAlias = Interval | None


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        check_constant(name, value)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"`{name}` must be positive and finite; got {value}.")


def _chain(*couplings: float) -> np.ndarray:
    """Q of a chain in which each variable is coupled to the next."""
    return np.diag(couplings, -1) - np.diag(couplings, 1)


def _create(
    skew: np.ndarray,
    dissipation: Sequence[float],
    start_variance: float,
    schedule: _Schedule,
    interval: _Interval,
    *,
    stationary: Sequence[float] | None = None,
) -> Recipe:
    """A recipe from the diagonals of D and S, with equal variances of the auxiliaries
    at time 0."""
    _check_positive(start_variance=start_variance)
    return Recipe.create(
        skew,
        np.diag(dissipation),
        stationary_covariance=None if stationary is None else np.diag(stationary),
        start_covariance=start_variance * np.diag([0.0] + [1.0] * (len(skew) - 1)),
        schedule=schedule,
        interval=interval,
    )


@final
class VPSDE(AbstractRecipeDiffusion):
    r"""The variance-preserving diffusion, $\mathrm{d}y = -\frac12 \beta y \mathrm{d}t +
    \sqrt\beta \mathrm{d}w$, with one variable.

    **Source:** Song et al. (2021), equation 11.
    """

    _recipe: Recipe

    def __init__(self, *, schedule: _Schedule = None, interval: _Interval = None):
        self._recipe = Recipe.create(
            [[0.0]], [[0.5]], schedule=schedule, interval=interval
        )


@final
class CLD(AbstractRecipeDiffusion):
    r"""Critically damped Langevin diffusion: a velocity for every data coordinate,
    and noise on the velocity only.

    $Q$ couples the two with unit strength, $D = \mathrm{diag}(0, \Gamma)$ and
    $S = \mathrm{diag}(1, M)$. The defaults, $M = 1$ and the shared schedule, follow
    Singhal et al. The original paper uses `mass=0.25`, `friction=1` and
    `ConstantSchedule(4)`.

    **Arguments:**

    - `mass`: $M$.
    - `friction`: $\Gamma$; $2 \sqrt M$ by default, which is critical.
    - `start_variance`: the variance of the velocity at time 0.
    - `schedule`, `interval`: as for [`eqmdm.LinearDiffusion`][].

    **Source:** Dockhorn, Vahdat & Kreis (2022), equation 5, per unit of $\beta$.
    """

    _recipe: Recipe

    def __init__(
        self,
        *,
        mass: float = 1.0,
        friction: float | None = None,
        start_variance: float = 0.01,
        schedule: _Schedule = None,
        interval: _Interval = None,
    ):
        _check_positive(mass=mass)
        friction = 2 * math.sqrt(mass) if friction is None else friction
        _check_positive(friction=friction)
        D, S = (0.0, friction), (1.0, mass)
        self._recipe = _create(
            _chain(1.0), D, start_variance, schedule, interval, stationary=S
        )


@final
class ALDA(AbstractRecipeDiffusion):
    r"""Accelerated Langevin diffusion: data, velocity and acceleration in a chain,
    with noise on the acceleration.

    The couplings are 1 and $\gamma$ (`coupling`), the friction on the acceleration is
    $\xi$, and $S = I$.

    **Source:** Mou et al. (2021), at unit mass as in Singhal et al. (2023), appendix.
    """

    _recipe: Recipe

    def __init__(
        self,
        *,
        coupling: float = 1.0,
        friction: float = 1.0,
        start_variance: float = 0.01,
        schedule: _Schedule = None,
        interval: _Interval = None,
    ):
        _check_positive(coupling=coupling, friction=friction)
        Q, D = _chain(1.0, coupling), (0.0, 0.0, friction)
        self._recipe = _create(Q, D, start_variance, schedule, interval)


@final
class MALDA(AbstractRecipeDiffusion):
    r"""Modified accelerated Langevin diffusion: three variables, all pairs of which are
    coupled, with noise on both auxiliaries.

    $Q$ is $-1$ above the diagonal and $+1$ below, $D = \mathrm{diag}(0, \Gamma,
    \Gamma)$ and $S = I$.

    **Source:** Singhal et al. (2023), appendix.
    """

    _recipe: Recipe

    def __init__(
        self,
        *,
        friction: float = 2.0,
        start_variance: float = 0.01,
        schedule: _Schedule = None,
        interval: _Interval = None,
    ):
        _check_positive(friction=friction)
        below = np.tril(np.ones((3, 3)), -1)
        D = (0.0, friction, friction)
        self._recipe = _create(below - below.T, D, start_variance, schedule, interval)


@final
class PSLD(AbstractRecipeDiffusion):
    r"""Phase-space Langevin diffusion: noise on the data and on the velocity.

    $Q$ couples with strength 1/2, $D = \frac12 \mathrm{diag}(\Gamma, M \nu)$ and
    $S = \mathrm{diag}(1, M)$. The default $\nu = \Gamma + 2 / \sqrt M$ is critical. The
    default schedule is the authors' constant rate 8. With $\Gamma = 0$ it is CLD.

    **Source:** Pandey & Mandt (2023), section 3.2.
    """

    _recipe: Recipe

    def __init__(
        self,
        *,
        mass: float = 0.25,
        data_friction: float = 0.01,
        velocity_friction: float | None = None,
        start_variance: float = 0.01,
        schedule: _Schedule = None,
        interval: _Interval = None,
    ):
        _check_positive(mass=mass)
        if velocity_friction is None:
            velocity_friction = data_friction + 2 / math.sqrt(mass)
        check_constant("data_friction", data_friction)
        if not (math.isfinite(data_friction) and data_friction >= 0):
            raise ValueError(
                "`data_friction` must be non-negative and finite; got "
                f"{data_friction}. 0 puts noise on the velocity only."
            )
        _check_positive(velocity_friction=velocity_friction)
        schedule = ConstantSchedule(8.0) if schedule is None else schedule
        D, S = (0.5 * data_friction, 0.5 * mass * velocity_friction), (1.0, mass)
        self._recipe = _create(
            _chain(0.5), D, start_variance, schedule, interval, stationary=S
        )


@final
class CriticalThirdOrder(AbstractRecipeDiffusion):
    r"""The critically damped chain of three variables: data, velocity, acceleration.

    Couplings of 1 and $2 \sqrt 2$ and a friction of $3 \sqrt 3$ on the acceleration
    give the drift the triple eigenvalue $-\sqrt 3$, the fastest decay of such a chain.
    """

    _recipe: Recipe

    def __init__(
        self,
        *,
        start_variance: float = 0.01,
        schedule: _Schedule = None,
        interval: _Interval = None,
    ):
        Q, D = _chain(1.0, 2 * math.sqrt(2)), (0.0, 0.0, 3 * math.sqrt(3))
        self._recipe = _create(Q, D, start_variance, schedule, interval)
