"""The diffusions of the literature, by the (Q, D) recipe."""

import math
from typing import final

import numpy as np

from .interval import Interval
from .matrices import check_constant
from .recipe import Recipe
from .schedule import AbstractSchedule, ConstantSchedule
from .stationary import AbstractRecipeDiffusion


def _start(n_vars: int, variance: float) -> np.ndarray:
    check_constant("start_variance", variance)
    if not (math.isfinite(variance) and variance > 0):
        raise ValueError(f"`start_variance` must be positive; got {variance}.")
    return variance * np.diag([0.0] + [1.0] * (n_vars - 1))


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        check_constant(name, value)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"`{name}` must be positive and finite; got {value}.")


@final
class VPSDE(AbstractRecipeDiffusion):
    r"""The variance-preserving diffusion: $\mathrm{d}y = -\frac12 \beta y \mathrm{d}t +
    \sqrt\beta \mathrm{d}w$; one variable.

    **Source:** Song et al. (2021), equation 11.
    """

    _recipe: Recipe

    def __init__(
        self,
        *,
        schedule: AbstractSchedule | None = None,
        interval: Interval | None = None,
    ):
        self._recipe = Recipe.create(
            [[0.0]],
            dissipation=[[0.5]],
            schedule=schedule,
            interval=interval,
        )


@final
class CLD(AbstractRecipeDiffusion):
    r"""Critically damped Langevin diffusion: a velocity for every data coordinate,
    and noise on the velocity alone.

    $Q$ couples the two with unit strength, $D = \mathrm{diag}(0, \Gamma)$ and
    $S = \mathrm{diag}(1, M)$. Here $M = 1$ and the shared schedule, as in Singhal et
    al.; the paper of its authors has `mass=0.25`, `friction=1`, `ConstantSchedule(4)`.

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
        schedule: AbstractSchedule | None = None,
        interval: Interval | None = None,
    ):
        _check_positive(mass=mass)
        friction = 2 * math.sqrt(mass) if friction is None else friction
        _check_positive(friction=friction)
        self._recipe = Recipe.create(
            [[0.0, -1.0], [1.0, 0.0]],
            dissipation=np.diag([0.0, friction]),
            stationary_covariance=np.diag([1.0, mass]),
            start_covariance=_start(2, start_variance),
            schedule=schedule,
            interval=interval,
        )


@final
class ALDA(AbstractRecipeDiffusion):
    r"""Accelerated Langevin diffusion: data, velocity and acceleration in a chain,
    noise on the last.

    Couplings 1 and $\gamma$, `coupling`; friction $\xi$ on the last; $S = I$.

    **Source:** Mou et al. (2021), at unit mass as in Singhal et al. (2023), appendix.
    """

    _recipe: Recipe

    def __init__(
        self,
        *,
        coupling: float = 1.0,
        friction: float = 1.0,
        start_variance: float = 0.01,
        schedule: AbstractSchedule | None = None,
        interval: Interval | None = None,
    ):
        _check_positive(coupling=coupling, friction=friction)
        self._recipe = Recipe.create(
            [[0.0, -1.0, 0.0], [1.0, 0.0, -coupling], [0.0, coupling, 0.0]],
            dissipation=np.diag([0.0, 0.0, friction]),
            start_covariance=_start(3, start_variance),
            schedule=schedule,
            interval=interval,
        )


@final
class MALDA(AbstractRecipeDiffusion):
    r"""Modified accelerated Langevin diffusion: every pair of three variables coupled,
    noise on both auxiliaries.

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
        schedule: AbstractSchedule | None = None,
        interval: Interval | None = None,
    ):
        _check_positive(friction=friction)
        self._recipe = Recipe.create(
            np.tril(np.ones((3, 3)), -1) - np.triu(np.ones((3, 3)), 1),
            dissipation=np.diag([0.0, friction, friction]),
            start_covariance=_start(3, start_variance),
            schedule=schedule,
            interval=interval,
        )


@final
class PSLD(AbstractRecipeDiffusion):
    r"""Phase-space Langevin diffusion: noise on the data and on the velocity.

    $Q$ couples with strength 1/2, $D = \frac12 \mathrm{diag}(\Gamma, M \nu)$ and
    $S = \mathrm{diag}(1, M)$; $\nu = \Gamma + 2 / \sqrt M$ unless given, which is
    critical. The authors' constant rate 8 is the default schedule. $\Gamma = 0$ is CLD.

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
        schedule: AbstractSchedule | None = None,
        interval: Interval | None = None,
    ):
        _check_positive(mass=mass)
        if velocity_friction is None:
            velocity_friction = data_friction + 2 / math.sqrt(mass)
        check_constant("data_friction", data_friction)
        if not (math.isfinite(data_friction) and data_friction >= 0):
            raise ValueError(
                "`data_friction` must be non-negative and finite; got "
                f"{data_friction}. 0 puts noise on the velocity alone."
            )
        _check_positive(velocity_friction=velocity_friction)
        self._recipe = Recipe.create(
            [[0.0, -0.5], [0.5, 0.0]],
            dissipation=np.diag([0.5 * data_friction, 0.5 * mass * velocity_friction]),
            stationary_covariance=np.diag([1.0, mass]),
            start_covariance=_start(2, start_variance),
            schedule=ConstantSchedule(8.0) if schedule is None else schedule,
            interval=interval,
        )


@final
class CriticalThirdOrder(AbstractRecipeDiffusion):
    r"""The critically damped chain of three variables: data, velocity, acceleration.

    Couplings 1 and $2 \sqrt 2$ and friction $3 \sqrt 3$ on the last give the drift the
    triple eigenvalue $-\sqrt 3$, the fastest decay of such a chain.
    """

    _recipe: Recipe

    def __init__(
        self,
        *,
        start_variance: float = 0.01,
        schedule: AbstractSchedule | None = None,
        interval: Interval | None = None,
    ):
        coupling = 2 * math.sqrt(2)
        self._recipe = Recipe.create(
            [[0.0, -1.0, 0.0], [1.0, 0.0, -coupling], [0.0, coupling, 0.0]],
            dissipation=np.diag([0.0, 0.0, 3 * math.sqrt(3)]),
            start_covariance=_start(3, start_variance),
            schedule=schedule,
            interval=interval,
        )
