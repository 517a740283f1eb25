"""The dependence of a denoiser's bound on the path of its vector of log-SNRs."""

import math
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from .._core.checks import as_examples, check_count, check_points
from .._core.conditions import as_conditions
from .._core.estimate import Estimate
from .._core.random import draw_normal, draw_uniform
from .._core.types import Data, PRNGKey, Scalar
from .._model.base import AbstractModel, check_model, conditioned
from .._model.ends import log_snr_range as log_snr_ends
from .times import stratified


@final
class PathDependence(eqx.Module):
    r"""Differences between the bounds of paths with the same ends, in nats per
    dimension, each with a float64 value for every mask and every example.

    - `order`: the diffusion term of the path that raises the mask first, less that of
        the path that raises the rest first.
    - `staggering`: the mean of these two, less that of the path that raises all
        coordinates together.

    Both have mean 0 for an exact denoiser.
    """

    order: np.ndarray
    staggering: np.ndarray

    def summary(self) -> dict[str, Estimate]:
        """The mean staggering over masks and examples, as an estimate of its
        expectation for these masks."""
        return {"staggering": Estimate.from_mean(self.staggering.mean(axis=0))}

    def orders(self) -> list[Estimate]:
        """The order of each mask. Over random masks its mean is 0 for any denoiser,
        since a mask and its complement have opposite signs."""
        return [Estimate.from_mean(values) for values in self.order]

    @property
    def rms_order(self) -> float:
        """The root mean square of the order over masks, without the part that is due to
        the random examples; 0 if that is all."""
        found = self.orders()
        square = np.mean([e.value**2 - e.standard_error**2 for e in found])
        return math.sqrt(max(float(square), 0.0))

    def __repr__(self) -> str:
        staggering = self.summary()["staggering"]
        n_masks, n = self.order.shape
        return (
            f"PathDependence(staggering={staggering}, rms_order={self.rms_order:.3g} "
            f"nats/dim over {n_masks} masks and {n} examples)"
        )


def path_dependence(
    model: AbstractModel,
    x: Any,
    *,
    key: PRNGKey,
    condition: PyTree = None,
    log_snr_range: tuple[float, float] | None = None,
    masks: Any = None,
    n_masks: int = 8,
    n_draws: int = 4,
    batch_size: int = 64,
) -> PathDependence:
    r"""How much the bound of a denoiser depends on the path of its log-SNRs.

    Along a path of vectors of SNRs the diffusion term of the bound is

    $$\tfrac12 \int \sum_i \mathrm{E} (x_i - \hat x_i)^2 \, \mathrm{dSNR}_i$$

    For an exact denoiser the integrand is the gradient of the mutual information of the
    data and their noisy observation (Guo, Shamai & Verdú 2005), so the integral depends
    on the ends of the path alone. What it depends on beyond that is error of the
    network. Here all coordinates go from one log-SNR to another: those of a mask first,
    the others first, or all together.

    The paths share their levels, which are stratified, and their noise. The noise in
    the errors of accurate estimates at a high log-SNR, which a control variate would
    remove from each term, therefore cancels.

    !!! Example

        ```python
        found = eqmdm.path_dependence(model, examples, key=jr.key(0))
        print(found.summary()["staggering"])
        ```

    **Arguments:**

    - `model`: a model whose denoiser is told the log-SNR of every coordinate.
    - `x`: examples along the first axis, in the units and the basis that the model
        sees. Grey levels must be dequantised.
    - `condition`: the conditions of a conditional model, one for each example.
    - `log_snr_range`: the log-SNRs `(low, high)` at the ends of the paths; by default
        those of the model's diffusion.
    - `masks`: truth values of the shape of an example, along the first axis; by default
        `n_masks` random ones, each with a random number of coordinates.
    - `n_draws`: the number of levels and noises for each example and mask, with five
        evaluations of the denoiser each.
    - `batch_size`: the number of examples evaluated at once.

    **Raises:**

    `TypeError` unless `model` is told vectors, and for integers; `ValueError` for
    counts below 1, a range that is not increasing, or masks of another shape.
    """
    check_model(model).check_takes_snr_vector()
    examples = as_examples("x", x)
    check_points("x", examples, "levels")
    for name, count in {
        "n_masks": n_masks,
        "n_draws": n_draws,
        "batch_size": batch_size,
    }.items():
        check_count(name, count)
    n, shape = len(examples), tuple(examples.shape[1:])
    low, high = (
        log_snr_ends(model.linear_diffusion)
        if log_snr_range is None
        else map(float, log_snr_range)
    )
    if not low < high:
        raise ValueError(
            f"`log_snr_range` must be (low, high), increasing; got {(low, high)}."
        )
    key_mask, key = jr.split(key)
    if masks is None:
        masks = _random_masks(n_masks, shape, key=key_mask)
    masks = np.asarray(masks, bool)
    if masks.ndim == 0 or masks.shape[1:] != shape:
        raise ValueError(
            f"`masks` must have the shape of an example, {shape}, after the axis of "
            f"the masks; got {masks.shape}."
        )
    condition = as_conditions(condition, n)
    ends = jnp.asarray([low, high], examples.dtype)
    found = []
    for mask in jnp.asarray(masks):
        rows = []
        for start in range(0, n, batch_size):
            # Padded with the last example, so that only one shape is compiled.
            numbers = np.minimum(np.arange(start, start + batch_size), n - 1)
            batch = (
                jnp.asarray(examples[numbers]),
                jax.tree.map(lambda leaf: leaf[numbers], condition),  # noqa: B023
                jnp.asarray(numbers, jnp.int32),
            )
            rows.append(
                np.asarray(_differences(model, batch, mask, ends, n_draws, key))
            )
        found.append(np.concatenate(rows)[:n])
    values = np.stack(found).astype(np.float64) / math.prod(shape)
    return PathDependence(order=values[..., 0], staggering=values[..., 1])


def _random_masks(
    n: int, shape: tuple[int, ...], *, key: PRNGKey
) -> Bool[np.ndarray, "masks ..."]:
    n_dims = math.prod(shape)
    if n_dims < 2:
        raise ValueError(
            "`x` must have at least two coordinates, since the log-SNR of a single one "
            "has only one path; got one."
        )
    key_size, key_mask = jr.split(key)
    # At least one coordinate in the mask, and one in the rest.
    sizes = np.asarray(jr.randint(key_size, (n, 1), 1, n_dims))
    places = np.asarray(draw_uniform(key_mask, (n, n_dims), jnp.result_type(float)))
    ranks = places.argsort(axis=1).argsort(axis=1)
    return (ranks < sizes).reshape(n, *shape)


class Leg(NamedTuple):
    """A part of a path: the log-SNRs at one level, and which of them change there."""

    log_snr: Data
    moving: Bool[Array, "..."]


def legs(
    mask: Bool[Array, "..."], level: Scalar, low: Scalar, high: Scalar
) -> dict[str, tuple[Leg, ...]]:
    """The parts of each path at one level: the `mask` first, the `rest` first, and all
    `together`."""
    raise_first = lambda mask: (
        Leg(jnp.where(mask, level, low), mask),
        Leg(jnp.where(mask, high, level), ~mask),
    )
    together = Leg(jnp.broadcast_to(level, mask.shape), jnp.ones_like(mask))
    return {
        "mask": raise_first(mask),
        "rest": raise_first(~mask),
        "together": (together,),
    }


@eqx.filter_jit
def _differences(
    model: AbstractModel,
    batch: tuple[Float[Array, "examples *data"], PyTree, Array],
    mask: Bool[Array, "*data"],
    ends: Float[Array, "2"],
    n_draws: int,
    key: PRNGKey,
) -> Float[Array, "examples 2"]:
    """The two differences for each example, in nats."""
    low, high = ends

    def one(x: Data, condition: PyTree, number: Array) -> Float[Array, "2"]:
        given = conditioned(model, condition)
        key_level, *keys = jr.split(jr.fold_in(key, number), n_draws + 1)
        levels = low + (high - low) * stratified(n_draws, key=key_level).astype(x.dtype)

        def draw(level: Scalar, key: PRNGKey) -> Float[Array, "2"]:
            noise = draw_normal(key, x.shape, x.dtype)
            parts = legs(mask, level, low, high)
            every = [leg for path in parts.values() for leg in path]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)

            @jax.vmap
            def cost(leg: Leg) -> Scalar:
                z = x + jnp.exp(-0.5 * leg.log_snr) * noise
                error = x - given.denoise(leg.log_snr, z)
                return jnp.sum(jnp.where(leg.moving, error**2, 0))

            a1, a2, b1, b2, joint = cost(stacked)
            first, second = a1 + a2, b1 + b2
            weight = 0.5 * (high - low) * jnp.exp(level)
            differences = first - second, 0.5 * (first + second) - joint
            return weight * jnp.stack(differences)

        return jnp.mean(jax.vmap(draw)(levels, jnp.stack(keys)), axis=0)

    return jax.vmap(one)(*batch)
