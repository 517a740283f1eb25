"""A simulated state of a nonlinear diffusion, with the noise of its last step."""

from typing import final

import equinox as eqx

from .._core.blocks import solve_lower
from .._core.types import Scalar, State, VarsMatrix


@final
class SimulatedPoint(eqx.Module):
    r"""A simulated state at one time.

    - `t`: the time.
    - `y`: the state, whose last step was $L \epsilon$ plus a change that is known
        before it.
    - `root`: $L$, with the axes of the data last; `None` if there was no such step.
    - `noise`: $\epsilon$.
    """

    t: Scalar
    y: State
    root: VarsMatrix | None = None
    noise: State | None = None

    @property
    def conditional_score(self) -> State:
        r"""$-L^{-\top} \epsilon$, the score of the law of the last step."""
        assert self.root is not None and self.noise is not None
        return -solve_lower(self.root, self.noise, transpose=True)
