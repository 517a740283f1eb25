"""Types of arrays and scalars that all modules share."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key, Real


Scalar: TypeAlias = Float[Array, ""]
# A time as Diffrax passes it to a vector field.
Time: TypeAlias = bool | int | float | Real[Array | np.ndarray, ""]
IntScalar: TypeAlias = Int[Array, ""]
PRNGKey: TypeAlias = Key[Array, ""]

# Vectors and matrices on the variables are the same for every data coordinate, or have
# the axes of the data last.
VarsVector: TypeAlias = Float[Array, "vars *coordinates"]
VarsMatrix: TypeAlias = Float[Array, "vars vars *coordinates"]
# The types that a user may pass for a matrix.
MatrixLike: TypeAlias = ArrayLike | Sequence[Sequence[float | Float[Array, ""]]]
RankMatrix: TypeAlias = Float[Array, "vars rank *coordinates"]

Data: TypeAlias = Float[Array, "*data"]
State: TypeAlias = Float[Array, "vars *data"]
# The log-SNR of an example, or of each of its coordinates.
LogSNR: TypeAlias = Float[Array, "..."]
