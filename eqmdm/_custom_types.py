"""Shapes and scalars shared by every module."""

from collections.abc import Sequence
from typing import TypeAlias

from jaxtyping import Array, ArrayLike, Float, Int, Key


Scalar: TypeAlias = Float[Array, ""]
IntScalar: TypeAlias = Int[Array, ""]
PRNGKey: TypeAlias = Key[Array, ""]

VarsVector: TypeAlias = Float[Array, " vars"]
VarsMatrix: TypeAlias = Float[Array, "vars vars"]
# What a user may write a matrix as.
MatrixLike: TypeAlias = ArrayLike | Sequence[Sequence[float]]
RankMatrix: TypeAlias = Float[Array, "vars rank"]

Data: TypeAlias = Float[Array, "*data"]
State: TypeAlias = Float[Array, "vars *data"]
