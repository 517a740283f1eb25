"""Tests of the distribution of a single pixel, with frequent levels."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from pixels import noisy_pixel

import eqmdm
from eqmdm._model.pixel_law import Components, uniform_posterior
from helpers import tree_allclose


# Operation by operation, every width would compile its own programs.
posterior = jax.jit(uniform_posterior)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-9), (np.float32, 2e-3)])
def test_uniform_posterior_agrees_with_mpmath(dtype, tolerance):
    # Within 12 standard deviations, for widths on both sides of the series' end. In
    # float32 the difference of two tails loses up to the four digits of a narrow width.
    with mpmath.workdps(120):
        for width in (0.0, 1e-4, 0.02, 0.099, 0.101, 0.5, 2.0, 6.0, 30.0):
            for middle in (-12.0, -3.0, -0.5, 0.0, 0.2, 2.9, 5.0, 12.0):
                found = posterior(dtype(middle), dtype(width))
                exact = exact_uniform_posterior(
                    float(dtype(middle)), float(dtype(width))
                )
                scale = 1 + abs(exact[0])
                # The series, used for narrow widths, is truncated at the sixth power of
                # width / 2, with the coefficient middle^6 / 2835 and smaller ones.
                half, reach = min(width, 0.1) / 2, max(abs(middle), 1.0)
                rest = 2 * half**6 * reach**5 / 2835
                assert abs(found[0] - exact[0]) < (tolerance + rest * reach) * scale
                assert abs(found[1] - exact[1]) < tolerance * scale + 6 * rest


def exact_uniform_posterior(middle, width):
    m, w = mpmath.mpf(middle), mpmath.mpf(width)
    if w == 0:
        return float(mpmath.log(mpmath.npdf(m))), 0.0
    a, b = m - w / 2, m + w / 2
    mass = (mpmath.erfc(a / mpmath.sqrt(2)) - mpmath.erfc(b / mpmath.sqrt(2))) / 2
    mean = (mpmath.npdf(a) - mpmath.npdf(b)) / mass
    return float(mpmath.log(mass / w)), float(mean - m)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-9), (np.float32, 5e-4)])
def test_density_with_noise_is_the_convolution(dtype, tolerance):
    pixel = eqmdm.SpikeAndSlab([-0.9, 0.8], [0.2, 0.0], [0.5, 0.2], 0.1, 0.6)
    sigma = np.exp(-0.5 * np.asarray([-9.0, 0.0, 4.0, 9.0, 13.3]))[:, None]
    z = np.linspace(-2, 2, 41) + 3 * sigma * np.linspace(-1, 1, 41)
    expected, _ = noisy_pixel(pixel, sigma, z)
    log_density = jax.jit(lambda s, z: Components.of(pixel, s, z).log_density)
    found = log_density(jnp.asarray(sigma, dtype), jnp.asarray(z, dtype))
    # In float32 z is rounded by up to 1e-7, and the noise is 1e-3 at least, so that a
    # tail of the slab, or of a spike at 5 standard deviations, changes by 5e-4.
    assert tree_allclose(np.asarray(found, float), expected, rtol=0, atol=tolerance)


def test_distribution_of_examples_has_their_frequent_levels():
    levels = np.array([[0] * 60 + [1] * 10 + list(range(2, 17)) + [17] * 15])
    pixel = eqmdm.SpikeAndSlab.of(levels, eqmdm.GreyLevels(20), least_share=0.1)
    assert pixel.n_spikes == 3
    assert np.allclose(pixel.centres, [-0.95, -0.85, 0.75])
    assert np.allclose(pixel.widths, 0.1)
    assert np.allclose(pixel.shares, [0.6, 0.1, 0.15])
    # The 15 levels from 2 to 16, each with its width.
    centres = (np.arange(2, 17) + 0.5) / 10 - 1
    assert np.isclose(pixel.mean, centres.mean())
    assert np.isclose(pixel.std**2, centres.var() + 0.1**2 / 12)
    x = (np.asarray(levels) + 0.5) / 10 - 1
    moment = np.mean(x**2) + 0.1**2 / 12
    assert np.isclose(pixel.root_mean_square**2, moment)
    at_centres = eqmdm.GreyLevels(20, dequantiser=eqmdm.CentreDequantiser())
    assert eqmdm.SpikeAndSlab.of(levels, at_centres).widths == (0.0,) * 10


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"shares": [0.5]}, "`centres`, `widths` and `shares` must have one entry.*1"),
        ({"shares": [0.5, 0.5]}, r"`shares` must be positive.*\(0.5, 0.5\)"),
        ({"shares": [0.5, 0.0]}, r"`shares` must be positive.*\(0.5, 0.0\)"),
        ({"widths": [0.5, -1.0]}, r"`widths` must be finite.*-1.0"),
        ({"std": 0.0}, "`mean` must be finite, and `std` positive.*0.0"),
        ({"mean": np.nan}, "`mean` must be finite, and `std` positive.*nan"),
    ],
)
def test_distribution_refuses_what_is_none(changes, match):
    given = {"centres": [-0.9, 0.8], "widths": [0.2, 0.1], "shares": [0.5, 0.2]}
    with pytest.raises(ValueError, match=match):
        eqmdm.SpikeAndSlab(**(given | {"mean": 0.0, "std": 1.0} | changes))


def test_distribution_of_examples_refuses_those_that_have_none():
    levels = eqmdm.GreyLevels(4)
    with pytest.raises(TypeError, match="`examples` must be integers"):
        eqmdm.SpikeAndSlab.of(np.zeros(3), levels)
    with pytest.raises(ValueError, match="`examples`"):
        eqmdm.SpikeAndSlab.of(np.array([0, 4]), levels)
    with pytest.raises(ValueError, match=r"other levels than the spikes.*\[0\]"):
        eqmdm.SpikeAndSlab.of(np.zeros(3, int), levels)
