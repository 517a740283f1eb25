"""A bound, term by term."""

from typing import final

import equinox as eqx
from jaxtyping import Array, Float

from .._core.show import show_array


@final
class Elbo(eqx.Module):
    r"""A lower bound of $\log p(x)$ in nats, term by term; `total` is their sum.

    It is an unbiased estimate of the bound for one example, or for each example of a
    batch under `jax.vmap`. `standard_error` is that of `total` if the estimate is a
    mean over several draws, and `None` for a single draw.
    """

    reconstruction: Float[Array, "*batch"]
    prior: Float[Array, "*batch"]
    diffusion: Float[Array, "*batch"]
    auxiliary: Float[Array, "*batch"]
    standard_error: Float[Array, "*batch"] | None = None

    @property
    def total(self) -> Float[Array, "*batch"]:
        return self.reconstruction + self.prior + self.diffusion + self.auxiliary

    def terms(self) -> dict[str, Float[Array, "*batch"]]:
        """The four terms by name, in nats."""
        return {
            "reconstruction": self.reconstruction,
            "prior": self.prior,
            "diffusion": self.diffusion,
            "auxiliary": self.auxiliary,
        }

    def __repr__(self) -> str:
        parts = [
            f"{name}={show_array(value)}"
            for name, value in ({"total": self.total} | self.terms()).items()
        ]
        if self.standard_error is not None:
            parts.append(f"standard_error={show_array(self.standard_error)}")
        return f"Elbo({', '.join(parts)})"
