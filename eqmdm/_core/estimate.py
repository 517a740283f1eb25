"""Estimated numbers with their standard errors."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Estimate(NamedTuple):
    """A number estimated from samples, on the host, and its standard error.

    Its text shows two digits of the error: `-12.03 ± 0.71`.
    """

    value: float
    standard_error: float

    def __str__(self) -> str:
        value, error = self
        if not (math.isfinite(error) and error > 0):
            return f"{value:.6g} ± {error:.2g}"
        n_decimals = max(0, 1 - math.floor(math.log10(error)))
        return f"{value:.{n_decimals}f} ± {error:.{n_decimals}f}"

    @classmethod
    def from_mean(cls, values: Float[np.ndarray, " n"]) -> "Estimate":
        """The mean of independent values; the error of a single one is NaN."""
        values = np.asarray(values, np.float64)
        n = len(values)
        # NumPy warns about the variance of a single value.
        error = math.sqrt(values.var(ddof=1) / n) if n > 1 else math.nan
        return cls(float(values.mean()), error)
