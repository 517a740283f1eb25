"""The result of a likelihood computation."""

from typing import final

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._core.show import show_array


@final
class Likelihood(eqx.Module):
    r"""$\log p(x)$ of one example, or of each of a batch under `jax.vmap`.

    - `log_likelihood`: in nats, summed over the data coordinates; NaN unless
        `converged`.
    - `standard_error`: of `log_likelihood`, in nats, from the draws or probes that it
        is a mean over. 0 where nothing is random, NaN where there is only one of them.
        Infinite where importance weights do not tell: see [`eqmdm.AugmentedRoute`][].
    - `effective_sample_size`: $(\sum_i w_i)^2 / \sum_i w_i^2$ of importance weights
        $w_i$; the number of draws where they have no weights, and 1 where nothing is
        drawn.
    - `n_evaluations`: of the drift, each of which takes one of the network, over all
        solves; derivatives along probes are not counted beside it. -1 for a solver
        that is not an explicit Runge-Kutta method: its evaluations are not known.
    - `result`: success, or why a solve failed: `diffrax.RESULTS.max_steps_reached` or
        `.nonfinite`, or another of Diffrax's. `diffrax.RESULTS[result]` is its text.
    """

    log_likelihood: Float[Array, "*batch"]
    standard_error: Float[Array, "*batch"]
    effective_sample_size: Float[Array, "*batch"]
    n_evaluations: Int[Array, "*batch"]
    result: dfx.RESULTS

    @property
    def converged(self) -> Bool[Array, "*batch"]:
        """Whether every solve reached its end with finite numbers."""
        return self.result == dfx.RESULTS.successful

    def __repr__(self) -> str:
        shown = {
            "log_likelihood": self.log_likelihood,
            "standard_error": self.standard_error,
            "effective_sample_size": self.effective_sample_size,
            "n_evaluations": self.n_evaluations,
        }
        parts = [f"{name}={show_array(value)}" for name, value in shown.items()]
        # A number of examples, since `result` of a batch would be a text for each.
        n_converged = show_array(jnp.sum(self.converged))
        parts.append(f"converged={n_converged} of {self.converged.size}")
        return f"Likelihood({', '.join(parts)})"
