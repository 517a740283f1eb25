"""The result of a likelihood computation."""

from typing import final

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._core.show import show_array
from .._core.types import IntScalar


@final
class Likelihood(eqx.Module):
    r"""$\log p(x)$ of one example, or of each of a batch under `jax.vmap`.

    - `log_likelihood`: in nats, summed over the data coordinates; NaN unless
        `converged`.
    - `standard_error`: the standard error of `log_likelihood`, in nats, from its draws
        or probes. 0 if nothing is random, NaN for a single draw or probe, and infinite
        if importance weights do not determine it: see [`eqmdm.AugmentedRoute`][].
    - `effective_sample_size`: $(\sum_i w_i)^2 / \sum_i w_i^2$ for importance weights
        $w_i$; the number of draws if they are not weighted, and 1 if nothing is drawn.
    - `n_evaluations`: the number of evaluations of the drift over all solves, each of
        which evaluates the network once. Derivatives along probes are not counted
        separately. -1 if it is not known, because the solver is not an explicit
        Runge-Kutta method.
    - `result`: success, or why a solve failed: `diffrax.RESULTS.max_steps_reached`,
        `.nonfinite`, or another of Diffrax's results. `diffrax.RESULTS[result]` is the
        text.
    """

    log_likelihood: Float[Array, "*batch"]
    standard_error: Float[Array, "*batch"]
    effective_sample_size: Float[Array, "*batch"]
    n_evaluations: Int[Array, "*batch"]
    result: dfx.RESULTS

    @property
    def converged(self) -> Bool[Array, "*batch"]:
        """Whether every solve reached the final time with finite values."""
        return self.result == dfx.RESULTS.successful

    def __repr__(self) -> str:
        shown = {
            "log_likelihood": self.log_likelihood,
            "standard_error": self.standard_error,
            "effective_sample_size": self.effective_sample_size,
            "n_evaluations": self.n_evaluations,
        }
        parts = [f"{name}={show_array(value)}" for name, value in shown.items()]
        # A count, because `result` would show one text for each example of a batch.
        n_converged = show_array(jnp.sum(self.converged))
        parts.append(f"converged={n_converged} of {self.converged.size}")
        return f"Likelihood({', '.join(parts)})"


def joint_outcome(
    n_evaluations: Int[Array, " solves"], results: dfx.RESULTS
) -> tuple[IntScalar, dfx.RESULTS]:
    """The evaluations of several solves, and the result of the first that failed, if
    any did."""
    known = jnp.all(n_evaluations >= 0)
    first = jnp.argmax(results != dfx.RESULTS.successful)
    result = jax.tree.map(lambda leaf: leaf[first], results)
    return jnp.where(known, jnp.sum(n_evaluations), -1), result
