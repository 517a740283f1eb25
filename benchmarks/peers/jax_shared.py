"""Shared code of the JAX workers: eqmdm's networks, and scores in closed form.

The networks are loaded from their files without the rest of eqmdm, whose requirements
a peer's environment may not meet. So all train the same network, with the same code.
"""

import importlib.util
import math
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import problems


_ROOT = Path(__file__).parents[2]
if importlib.util.find_spec("eqmdm") is None:
    _package = types.ModuleType("eqmdm")
    _package.__path__ = [str(_ROOT / "eqmdm")]
    sys.modules["eqmdm"] = _package

from eqmdm import nn  # noqa: E402


def unet() -> nn.UNet:
    return nn.UNet(
        problems.IMAGE_SHAPE,
        1,
        width=32,
        multipliers=(1, 2, 2),
        n_blocks=2,
        key=jr.key(0),
    )


def mlp() -> nn.MLP:
    return nn.MLP((2,), 1, width=128, depth=3, key=jr.key(0))


def as_arrays(network: Any) -> tuple[Any, Any]:
    """The parameters of a network, and a function of them and of batches `(t, y)`."""
    arrays, static = eqx.partition(network, eqx.is_inexact_array)
    shape = network.shape

    def apply(arrays, t, y):
        one = eqx.combine(arrays, static)
        t = jnp.broadcast_to(t.reshape(-1), (len(y),))
        return jax.vmap(one)(t, y.reshape(-1, 1, *shape)).reshape(y.shape)

    return arrays, apply


def as_conditional_arrays(network: Any) -> tuple[Any, Any]:
    """As `as_arrays`, for a function that also takes a condition for each example, or
    one for all of them."""
    arrays, static = eqx.partition(network, eqx.is_inexact_array)
    shape = network.shape

    def apply(arrays, t, y, condition):
        one = eqx.combine(arrays, static)
        call = lambda t, y, c: one(t, y, condition=c)
        t = jnp.broadcast_to(t.reshape(-1), (len(y),))
        condition = condition.reshape(-1, *network.condition.shape)
        condition = jnp.broadcast_to(condition, (len(y), *condition.shape[1:]))
        return jax.vmap(call)(t, y.reshape(-1, 1, *shape), condition).reshape(y.shape)

    return arrays, apply


def network_facts(network: Any, *examples: np.ndarray) -> dict[str, Any]:
    """The size of a network, and the operations of one evaluation of one example."""
    leaves = jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))
    call = lambda *arguments: network(*arguments)
    return {
        "n_parameters": sum(leaf.size for leaf in leaves),
        "flops": _flops(jax.make_jaxpr(call)(*examples).jaxpr),
    }


def own_network_facts() -> dict[str, dict[str, Any]]:
    t = np.float32(0.5)
    image = np.zeros((1, *problems.IMAGE_SHAPE), np.float32)
    return {
        "unet": network_facts(unet(), t, image),
        "mlp": network_facts(mlp(), t, np.zeros((1, 2), np.float32)),
    }


def _flops(jaxpr: Any) -> int:
    """The operations of products and convolutions: two per multiplication."""
    total = 0
    for equation in jaxpr.eqns:
        shapes = [np.array(v.aval.shape, int) for v in equation.invars]
        size = sum(math.prod(v.aval.shape) for v in equation.outvars)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * size * math.prod(shapes[0][list(contracted)].tolist())
        elif equation.primitive.name == "conv_general_dilated":
            kernel = shapes[1]
            out = equation.params["dimension_numbers"].rhs_spec[0]
            total += 2 * size * math.prod(np.delete(kernel, out).tolist())
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            total += _flops(inner) if hasattr(inner, "eqns") else 0
    return total


def law_arrays(law: problems.Mixture) -> tuple[jax.Array, jax.Array, jax.Array]:
    return tuple(
        jnp.asarray(part, jnp.float32) for part in (law.means, law.basis, law.variances)
    )


def score(law: problems.Mixture, coefficient: Any, noise: Any, y: Any) -> jax.Array:
    """The score of `coefficient * x` plus noise with a variance, at one example `y`."""
    means, basis, variances = law_arrays(law)
    total = coefficient**2 * variances + noise
    gaps = (y - coefficient * means) @ basis
    weights = jax.nn.softmax(-0.5 * jnp.sum(gaps**2 / total, axis=-1))
    return -(weights @ (gaps / total)) @ basis.T


def denoiser(law: problems.Mixture, noise: Any, z: Any) -> jax.Array:
    """The mean of the data given `z`, the data plus noise with a variance."""
    means, basis, variances = law_arrays(law)
    total = variances + noise
    gaps = (z - means) @ basis
    weights = jax.nn.softmax(-0.5 * jnp.sum(gaps**2 / total, axis=-1))
    return weights @ means + (weights @ (gaps * (variances / total))) @ basis.T


def vp_score(law: problems.Mixture, t: Any, y: Any) -> jax.Array:
    """The score of the process at a time."""
    low, high = problems.RATES
    integral = low * t + 0.5 * (high - low) * t**2
    return score(law, jnp.exp(-0.5 * integral), -jnp.expm1(-integral), y)


def versions(*packages: str) -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    return found | {package: version(package) for package in packages}
