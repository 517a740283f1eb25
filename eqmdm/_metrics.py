"""Distances between two sets of samples, each with a standard error."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float64, Shaped

from ._core.checks import as_array, as_examples, check_count
from ._core.estimate import Estimate
from ._core.types import PRNGKey


Samples: TypeAlias = Shaped[Array | np.ndarray, "_ ..."]
# Computed on the host in float64 on every platform, because the distances are small
# differences of large numbers, and because sampling costs far more.
Rows: TypeAlias = Float64[np.ndarray, "_ dim"]

# The largest number of kernel values, or of projected samples, held in memory.
_CHUNK = 2**22
# The number of examples in the median distance.
_N_MEDIAN = 1000
_MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)


def sliced_wasserstein(
    x: Samples,
    y: Samples,
    *,
    key: PRNGKey,
    order: int = 2,
    n_projections: int = 512,
    n_groups: int = 20,
) -> Estimate:
    r"""The sliced Wasserstein distance between two sets of samples.

    $$\left( \mathbb{E}_\theta \int_0^1 \lvert F_{\theta \cdot x}^{-1}(u) -
    F_{\theta \cdot y}^{-1}(u) \rvert^p \, \mathrm{d}u \right)^{1/p}$$

    with $\theta$ uniform on the unit sphere and $F^{-1}$ the quantile functions of the
    projected samples. These are step functions, so the integral is exact, also for sets
    of different sizes. The distance is in the units of one coordinate: for $p = 2$, a
    shift of every coordinate by $\delta$ is a distance of $\delta$.

    Between two sets from the same law it is not 0, but decreases as the inverse square
    root of their sizes. Compare with the distance of another set of real data.

    **Arguments:**

    - `x`, `y`: samples along the first axis; each is flattened.
    - `key`: the key for the directions. The same key gives the same directions, so use
        one key for all distances from the same data.
    - `order`: $p$, at least 1.
    - `n_projections`: the number of directions.
    - `n_groups`: the number of groups of the jackknife, which computes the distance
        without each group of either set. The standard error covers the samples, not the
        directions. It is too large rather than too small on average, and has a relative
        error of $1 / \sqrt{2 n_\text{groups}}$.

    **Raises:**

    `TypeError` unless both are arrays of real numbers; `ValueError` if shapes differ,
    samples are not finite or fewer than twice `n_groups`, or a number is out of range.

    **Source:** Bonneel, Rabin, Peyre & Pfister (2015), section 3; Efron & Stein (1981)
    for the jackknife.
    """
    _check_groups(n_groups)
    rows_x, rows_y = _rows(x, y, at_least=2 * n_groups)
    if order < 1:
        raise ValueError(f"`order` must be at least 1; got {order}.")
    check_count("n_projections", n_projections)
    # float32 even in JAX's 64-bit mode, so that the directions are the same.
    theta = jr.normal(key, (n_projections, rows_x.shape[1]), jnp.float32)
    directions = np.asarray(theta, np.float64)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    totals = np.zeros(n_groups + 1)
    chunk = max(1, _CHUNK // max(len(rows_x), len(rows_y)))
    for start in range(0, n_projections, chunk):
        part = directions[start : start + chunk]
        totals += _projected(rows_x, rows_y, part, order, n_groups)
    value, *left_out = (totals / n_projections) ** (1 / order)
    return Estimate(float(value), _jackknife(np.asarray(left_out)))


def _projected(
    x: Rows, y: Rows, directions: Rows, order: int, n_groups: int
) -> Float64[np.ndarray, " _"]:
    r"""The sum of $W_p^p$ over directions, for all samples and without each group."""
    ordered = []
    for rows in (x, y):
        values = directions @ rows.T
        places = np.argsort(values, axis=1)
        groups = places % n_groups
        ordered.append((np.take_along_axis(values, places, axis=1), groups))
    (values_x, groups_x), (values_y, groups_y) = ordered
    totals = [_between_quantiles(values_x, values_y, order)]
    for group in range(n_groups):
        # The remaining entries stay sorted, and every row loses the same number.
        kept_x = values_x[groups_x != group].reshape(len(directions), -1)
        kept_y = values_y[groups_y != group].reshape(len(directions), -1)
        totals.append(_between_quantiles(kept_x, kept_y, order))
    return np.asarray(totals)


def _between_quantiles(
    x: Float64[np.ndarray, "p n"], y: Float64[np.ndarray, "p m"], order: int
) -> float:
    r"""The sum of $\int \lvert F^{-1} - G^{-1} \rvert^p$ over sorted rows."""
    n, m = x.shape[1], y.shape[1]
    if n == m:
        return float(np.sum(np.abs(x - y) ** order) / n)
    # The quantiles at which either function jumps, as integers in units of 1 / (n m).
    steps_x = np.arange(1, n + 1) * m
    steps_y = np.arange(1, m + 1) * n
    steps = np.union1d(steps_x, steps_y)
    widths = np.diff(steps, prepend=0) / (n * m)
    gaps = x[:, np.searchsorted(steps_x, steps)] - y[:, np.searchsorted(steps_y, steps)]
    return float(np.sum(np.abs(gaps) ** order @ widths))


def maximum_mean_discrepancy(
    x: Samples, y: Samples, *, bandwidths: Sequence[float] | None = None
) -> Estimate:
    r"""An unbiased estimate of the squared maximum mean discrepancy with Gaussian
    kernels.

    $$\frac{1}{n (n - 1)} \sum_{i \neq j} k(x_i, x_j) + \frac{1}{m (m - 1)} \sum_{i
    \neq j} k(y_i, y_j) - \frac{2}{n m} \sum_{i, j} k(x_i, y_j), \qquad k(u, v) =
    \frac1B \sum_b e^{-\lVert u - v \rVert^2 / 2 h_b^2}$$

    Its mean is 0 for two sets from the same law, so it may be negative.

    The standard error is that of the jackknife that leaves out each sample of either
    set in turn, which the row sums of the kernels give without further work. For two
    sets from the same law the statistic is degenerate, and the error is too large by a
    factor of up to $\sqrt2$. Otherwise it is consistent.

    **Arguments:**

    - `x`, `y`: samples along the first axis, at least three; each is flattened.
    - `bandwidths`: $h_b$, in the units of Euclidean distances between samples. By
        default 1/4, 1/2, 1, 2 and 4 times the median distance among the first 1,000 of
        `y`. They depend on `y` only, so that the distances of several sets from the
        same `y` use the same kernel.

    Apart from the samples themselves, memory does not grow with their number.

    **Raises:**

    `TypeError` unless both are arrays of real numbers; `ValueError` if shapes differ,
    samples are not finite or too few, or a bandwidth is not positive.

    **Source:** Gretton et al. (2012), lemma 6; Arvesen (1969) for the jackknife.
    """
    rows_x, rows_y = _rows(x, y, at_least=3)
    if bandwidths is None:
        bandwidths = [multiple * _median_distance(rows_y) for multiple in _MULTIPLES]
    lengths = np.asarray(as_array("bandwidths", bandwidths), np.float64)
    usable = np.isfinite(lengths) & (lengths > 0)
    if lengths.ndim != 1 or not len(lengths) or not np.all(usable):
        raise ValueError(
            "`bandwidths` must be one or more positive lengths; got "
            f"{lengths.tolist()}. The defaults are 0 if most of `y` are equal: pass "
            "your own."
        )
    within_x, _ = _kernel_sums(rows_x, rows_x, lengths)
    within_y, _ = _kernel_sums(rows_y, rows_y, lengths)
    cross_x, cross_y = _kernel_sums(rows_x, rows_y, lengths)
    n, m = len(rows_x), len(rows_y)
    # Subtract the kernel of each sample with itself, which is 1.
    within_x, within_y = within_x - 1, within_y - 1
    mean_x = within_x.sum() / (n * (n - 1))
    mean_y = within_y.sum() / (m * (m - 1))
    cross = cross_x.sum()
    without_x = (within_x.sum() - 2 * within_x) / ((n - 1) * (n - 2))
    without_x = without_x - 2 * (cross - cross_x) / ((n - 1) * m)
    without_y = (within_y.sum() - 2 * within_y) / ((m - 1) * (m - 2))
    without_y = without_y - 2 * (cross - cross_y) / (n * (m - 1))
    value = mean_x + mean_y - 2 * cross / (n * m)
    error = math.hypot(_jackknife(without_x), _jackknife(without_y))
    return Estimate(float(value), error)


def _kernel_sums(
    x: Rows, y: Rows, bandwidths: Float64[np.ndarray, " bandwidths"]
) -> tuple[Float64[np.ndarray, " _"], Float64[np.ndarray, " _"]]:
    """The row sums and the column sums of the kernel matrix."""
    over_rows, over_columns = np.empty(len(x)), np.zeros(len(y))
    chunk = max(1, _CHUNK // len(y))
    for start in range(0, len(x), chunk):
        part = slice(start, start + chunk)
        squares = _squared_distances(x[part], y)
        kernels = np.zeros_like(squares)
        for h in bandwidths:
            kernels += np.exp(squares * (-0.5 / h**2)) / len(bandwidths)
        over_rows[part] = kernels.sum(axis=1)
        over_columns += kernels.sum(axis=0)
    return over_rows, over_columns


def _squared_distances(x: Rows, y: Rows) -> Float64[np.ndarray, "_ _"]:
    squares = -2 * (x @ y.T)
    squares += np.sum(x**2, axis=1)[:, None]
    squares += np.sum(y**2, axis=1)
    # For equal rows, rounding may leave a small negative value.
    return np.maximum(squares, 0.0)


def _median_distance(y: Rows) -> float:
    y = y[:_N_MEDIAN]
    distances = np.sqrt(_squared_distances(y, y)[np.triu_indices(len(y), 1)])
    return float(np.median(distances))


def frechet_distance(x: Samples, y: Samples, *, n_groups: int = 20) -> Estimate:
    r"""The squared Fréchet distance between normal laws with the samples' moments.

    $$\lVert m_x - m_y \rVert^2 + \operatorname{tr} \left( C_x + C_y - 2 (C_x^{1/2} C_y
    C_x^{1/2})^{1/2} \right)$$

    with means $m$ and covariances $C$. For features of an Inception network it is the
    Fréchet Inception distance.

    With $C = R^\top R$, where $R$ is from a QR decomposition of the centred samples,
    the trace of the root is the sum of the singular values of $R_x R_y^\top$. This
    avoids squares, and the root of a matrix that rounding could have made indefinite.
    There may be fewer samples than features.

    The distance is biased upwards: for two sets of $n$ samples of the same law by
    $O(1 / n)$, and for $d$ independent normal features of variance $\sigma^2$ by about
    $\sigma^2 d (d + 5) / 2 n$ while $d < n$. With fewer samples than features it is
    mostly bias, which the standard error does not include. Compare only at equal sizes,
    and with the distance of another set of real data.

    **Arguments:**

    - `x`, `y`: samples, such as features of images, along the first axis; each is
        flattened.
    - `n_groups`: the number of groups of the jackknife for the standard error, as for
        [`eqmdm.sliced_wasserstein`][].

    **Raises:**

    `TypeError` unless both are arrays of real numbers; `ValueError` if shapes differ,
    or samples are not finite or fewer than twice `n_groups`.

    **Source:** Dowson & Landau (1982); Heusel et al. (2017), equation 6.
    """
    _check_groups(n_groups)
    rows_x, rows_y = _rows(x, y, at_least=2 * n_groups)
    # Interleave the groups, in case the samples are ordered.
    group_x, group_y = (np.arange(len(rows)) % n_groups for rows in (rows_x, rows_y))
    left_out = [
        _between_normals(rows_x[group_x != group], rows_y[group_y != group])
        for group in range(n_groups)
    ]
    value = _between_normals(rows_x, rows_y)
    return Estimate(value, _jackknife(np.asarray(left_out)))


def _between_normals(x: Rows, y: Rows) -> float:
    mean_x, root_x = _moments(x)
    mean_y, root_y = _moments(y)
    overlap = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    variances = np.sum(root_x**2) + np.sum(root_y**2)
    return float(np.sum((mean_x - mean_y) ** 2) + variances - 2 * overlap)


def _moments(rows: Rows) -> tuple[Float64[np.ndarray, " dim"], Rows]:
    """The mean, and an upper-triangular root of the covariance."""
    mean = rows.mean(axis=0)
    centred = (rows - mean) / math.sqrt(len(rows) - 1)
    return mean, np.asarray(np.linalg.qr(centred, mode="r"))


def _jackknife(left_out: Float64[np.ndarray, " parts"]) -> float:
    """The standard error of a statistic, from its values without each part."""
    n = len(left_out)
    return math.sqrt((n - 1) / n * float(np.sum((left_out - left_out.mean()) ** 2)))


def _check_groups(n_groups: int) -> None:
    check_count("n_groups", n_groups, least=2)


def _rows(x: Samples, y: Samples, *, at_least: int) -> tuple[Rows, Rows]:
    """Both sets as float64 matrices, with one sample in each row."""
    x, y = as_examples("x", x), as_examples("y", y)
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"`x` and `y` must hold samples of one shape; got {x.shape[1:]} and "
            f"{y.shape[1:]}."
        )
    sets = []
    for name, samples in (("x", x), ("y", y)):
        if len(samples) < at_least:
            raise ValueError(
                f"`{name}` must be at least {at_least} samples; got {len(samples)}. "
                "Draw more, or lower `n_groups` if there is one."
            )
        rows = np.asarray(samples, np.float64).reshape(len(samples), -1)
        if not np.all(np.isfinite(rows)):
            raise ValueError(
                f"`{name}` must be finite; "
                f"{np.count_nonzero(~np.isfinite(rows).all(axis=1))} of {len(rows)} "
                "samples are not. Leave them out only if you report how many."
            )
        sets.append(rows)
    return sets[0], sets[1]
