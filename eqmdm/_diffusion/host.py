"""Kernels, log-SNRs and prior divergences of known constants, on the host.

They use only NumPy, so that building a diffusion from constants compiles nothing. The
algorithm is that of `kernel.py`, batched over leading axes.
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from .kernel import N_DOUBLINGS, SHORT_STEP, SMALL_DEVIATION, quadrature, series_order


Matrices: TypeAlias = Float[np.ndarray, "... _ _"]
Numbers: TypeAlias = Float[np.ndarray, "..."]

# By default the divergences of the named diffusions at t1 are between 0.00001 (PSLD)
# and 0.05 (ALDA, the slowest), which their authors accept as mixed. Twice the largest
# is reached at a log-SNR of about -1.5, where the data still make up a tenth of the
# variance of the state.
LARGEST_DIVERGENCE = 0.1


# Of a search for a log-SNR. Bisection alone takes about 60 to the spacing of float64.
_MOST_ROUNDS = 200


class Laws(NamedTuple):
    """Normal laws, one for each time: mean maps, and roots of the covariances."""

    mean_map: Matrices
    root: Matrices


class Path(NamedTuple):
    """Properties of the perturbation kernels at increasing times: the log-determinants
    of their roots and of their whole mean maps, and their log-SNRs."""

    log_det_root: Numbers
    log_det_mean_map: Numbers
    log_snr: Numbers


def at(laws: Laws, index: int) -> Laws:
    """The law at one of the times."""
    return Laws(laws.mean_map[index], laws.root[index])


def operator_norm_bound(F: Matrices) -> Numbers:
    r"""$\sqrt{\|F\|_1 \|F\|_\infty}$, which bounds the spectral norm."""
    absolute = np.abs(F)
    columns, rows = (absolute.sum(axis=axis).max(axis=-1) for axis in (-2, -1))
    # For a single matrix NumPy returns a scalar.
    return np.asarray(np.sqrt(columns * rows))


def lq_root(rows: Matrices) -> Matrices:
    """The lower-triangular L, with positive diagonal, of A = L Q."""
    root = np.swapaxes(np.linalg.qr(np.swapaxes(rows, -1, -2), mode="r"), -1, -2)
    signs = np.where(np.diagonal(root, axis1=-2, axis2=-1) < 0, -1, 1)
    return root * signs[..., None, :].astype(root.dtype)


def solve_lower(root: Matrices, rhs: Matrices) -> Matrices:
    """L^-1 b, by substitution, because LAPACK would pivot and mix rows of very
    different size."""
    solution = np.zeros(np.broadcast_shapes(root.shape[:-1] + (1,), rhs.shape))
    solution = solution.astype(root.dtype)
    for i in range(root.shape[-1]):
        known = root[..., i, None, :i] @ solution[..., :i, :]
        rest = rhs[..., i, :] - known[..., 0, :]
        solution[..., i, :] = rest / root[..., i, i, None]
    return solution


def transition(F: Matrices, G: Matrices, tau: Numbers) -> Laws:
    """The transitions over `tau` of dy = F y dtau + G dw; see `constant_transition`."""
    with np.errstate(divide="ignore"):
        needed = np.log2(operator_norm_bound(F) * tau / SHORT_STEP)
    count = np.clip(np.ceil(needed), 0, N_DOUBLINGS).astype(int)
    h = np.ldexp(tau, -count)[..., None, None]
    identity = np.eye(F.shape[-1], dtype=F.dtype)

    order = series_order(F.dtype)
    factor = np.zeros_like(F * h)
    for k in range(order, 1, -1):
        factor = (F * (h / k)) @ (identity + factor)
    deviation = (F * h) @ (identity + factor)

    # The last node first, because the factorisation is more accurate with the larger
    # columns in front.
    nodes, weights = (
        np.array(part[::-1], F.dtype)[:, None, None]
        for part in quadrature(F.shape[-1], F.dtype)
    )
    # Add an axis for the nodes before the axes of the matrices.
    G, F_nodes = G[..., None, :, :], (F * h)[..., None, :, :] * nodes
    factor = G
    for k in range(order, 0, -1):
        factor = G + (F_nodes / k) @ factor
    columns = np.moveaxis(np.sqrt(h[..., None] * weights) * factor, -3, -2)
    root = lq_root(columns.reshape(*columns.shape[:-2], -1))

    psi = identity + deviation
    for index in range(int(count.max())):
        largest = np.abs(deviation).max(axis=(-2, -1), keepdims=True)
        short = largest < SMALL_DEVIATION
        squared = 2 * deviation + deviation @ deviation
        new_psi = np.where(short, identity + squared, psi @ psi)
        new_deviation = np.where(short, squared, new_psi - identity)
        new_root = lq_root(np.concatenate([psi @ root, root], axis=-1))
        active = (index < count)[..., None, None]
        deviation = np.where(active, new_deviation, deviation)
        psi, root = np.where(active, new_psi, psi), np.where(active, new_root, root)
    return Laws(psi, root)


def composed_transition(F: Matrices, G: Matrices, h: Numbers) -> Laws:
    """The transition over several steps, with constant matrices in each step."""
    steps = transition(F, G, h)
    psi, root = steps.mean_map[0], steps.root[0]
    for step_psi, step_root in zip(steps.mean_map[1:], steps.root[1:], strict=True):
        root = lq_root(np.concatenate([step_psi @ root, step_root], axis=-1))
        psi = step_psi @ psi
    return Laws(psi, root)


def kernel_after(step: Laws, start_root: Matrices) -> Laws:
    """The law given only the data: the mean map as a column, and the root."""
    columns = [step.mean_map @ start_root, step.root]
    root = lq_root(np.concatenate(columns, axis=-1))
    return Laws(step.mean_map[..., :1], root)


def factors(kernel: Laws) -> tuple[Matrices, Numbers, Numbers, Numbers]:
    """The factors of `PerturbationKernel`: `whitening`, `direction`, `sigma` and
    `data_weights`; not finite where the root is singular."""
    with np.errstate(all="ignore"):
        whitening = solve_lower(kernel.root, np.eye(kernel.root.shape[-1]))
        b = solve_lower(kernel.root, kernel.mean_map)[..., 0]
        norm = np.linalg.norm(b, axis=-1, keepdims=True)
        direction = b / norm
        weights = np.sum(whitening * direction[..., None], axis=-2) / norm
        return whitening, direction, 1 / norm[..., 0], weights


def log_det(root: Matrices) -> Numbers:
    """The log-determinant of a triangular root with positive diagonal."""
    return np.sum(np.log(np.diagonal(root, axis1=-2, axis2=-1)), axis=-1)


def log_snr(kernel: Laws) -> Numbers:
    """log a^T Sigma^-1 a; NaN where the root underflows in the dtype."""
    diagonal = np.diagonal(kernel.root, axis1=-2, axis2=-1)
    held = (diagonal >= np.finfo(diagonal.dtype).tiny).all(axis=-1)
    with np.errstate(all="ignore"):
        whitened = solve_lower(kernel.root, kernel.mean_map)[..., 0]
        scale = np.abs(whitened).max(axis=-1)
        scale = np.where(scale > 0, scale, 1)
        square = np.sum((whitened / scale[..., None]) ** 2, axis=-1)
        return np.where(held, 2 * np.log(scale) + np.log(square), np.nan)


def first_below(
    function: Callable[[Numbers], Numbers],
    levels: Float[np.ndarray, " levels"],
    first: float,
    last: float,
) -> Float[np.ndarray, " levels"]:
    """The points in [first, last], both positive, at which a decreasing function
    crosses each of `levels`; `last` where it does not.

    `function` takes one point for each level. A NaN counts as above the level, because
    the kernels at the earliest times are not resolved.

    **Source:** Chandrupatla (1997), in the logarithm of the points: inverse quadratic
    interpolation where it is reliable, and bisection otherwise.
    """

    def excess(points: Numbers) -> Numbers:
        values = function(np.exp(points)) - levels
        return np.where(np.isnan(values), np.inf, values)

    # The root lies between `new` and `other`; `old` is the previous point.
    other, new = (np.full(len(levels), math.log(end)) for end in (first, last))
    f_other, f_new = np.full(len(levels), np.inf), excess(new)
    crosses = f_new < 0
    old, f_old, share = other, f_other, np.full(len(levels), 0.5)
    with np.errstate(invalid="ignore", divide="ignore"):
        for _ in range(_MOST_ROUNDS):
            # Stop at the spacing of float64.
            width = np.abs(other - new)
            tolerance = 4e-16 * np.maximum(1, np.abs(new))
            if np.all((width <= 2 * tolerance) | (f_new == 0) | ~crosses):
                break
            least = np.minimum(tolerance / np.where(width > 0, width, 1), 0.5)
            point = new + np.clip(share, least, 1 - least) * (other - new)
            value = excess(point)
            same = (value < 0) == (f_new < 0)
            old, f_old = np.where(same, new, other), np.where(same, f_new, f_other)
            other, f_other = np.where(same, other, new), np.where(same, f_other, f_new)
            new, f_new = point, value
            share = _interpolated(new, other, old, f_new, f_other, f_old)
    # Take the end of the bracket whose value is nearer to the level.
    nearest = np.where(np.abs(f_new) <= np.abs(f_other), new, other)
    return np.where(crosses, np.exp(nearest), last)


def _interpolated(
    a: Numbers, b: Numbers, c: Numbers, f_a: Numbers, f_b: Numbers, f_c: Numbers
) -> Numbers:
    """The fraction of the way from `a` to `b` at which the inverse parabola through
    three points is 0; a half where it is not monotone between them."""
    xi, phi = (a - b) / (c - b), (f_a - f_b) / (f_c - f_b)
    trusted = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
    slope = (c - a) / (b - a)
    share = f_a / (f_b - f_a) * f_c / (f_b - f_c)
    share = share + slope * f_a / (f_c - f_a) * f_b / (f_c - f_b)
    return np.where(trusted, share, 0.5)


def prior_divergence(prior_root: Matrices, kernel: Laws) -> float:
    """KL(q(y_t1 | x) || prior) in nats per dimension, averaged over data of unit
    variance, as `Gaussian.kl_from` computes it."""
    M = solve_lower(prior_root, kernel.root)
    mean = solve_lower(prior_root, kernel.mean_map)
    gap = np.diag(M) - 1
    diagonal = np.sum(gap**2 + 2 * (gap - np.log1p(gap)))
    return float(0.5 * (np.sum(np.tril(M, -1) ** 2) + diagonal + np.sum(mean**2)))


def warn_unless_mixed(divergence: float) -> None:
    """Warns about a diffusion whose law at t1 is not its prior."""
    if divergence > LARGEST_DIVERGENCE:
        warnings.warn(
            "The law of this diffusion at the final time is not its prior: KL(q(y_t1 | "
            f"x) || prior) is {divergence:.2g} nats per dimension for data of unit "
            "variance. Bounds lose as much, and samples start from the wrong law. Give "
            "it `interval=LogSNRInterval(-9, 13.3)` or a `TimeInterval` with a later "
            "t1, or, if t1 is late enough, the prior that it reaches.",
            stacklevel=2,
        )
