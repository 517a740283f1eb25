import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from eqmdm._core import random


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("partitionable", [True, False])
@pytest.mark.parametrize("shape", [(), (3,), (2, 8, 8, 1), (0, 4)])
@pytest.mark.parametrize("name", ["normal", "uniform"])
def test_draws_are_those_of_jax(name, shape, partitionable, impl, key):
    key = jr.key(jr.key_data(key)[-1], impl=impl)
    with jax.threefry_partitionable(partitionable):
        expected = getattr(jr, name)(key, shape, jnp.float32)
        actual = getattr(random, f"draw_{name}")(key, shape, jnp.float32)
    np.testing.assert_array_equal(actual, expected)
    assert actual.dtype == jnp.float32


@pytest.mark.parametrize("name", ["normal", "uniform"])
def test_fewer_draws_from_a_key_are_the_first_of_more(name, key):
    # Bounds draw all their noise at once, with as many rows as the largest part needs.
    draw = getattr(random, f"draw_{name}")
    fewer, more = (draw(key, (n_rows, 3, 3), jnp.float32) for n_rows in (1, 2))
    np.testing.assert_array_equal(fewer, more[:1])
