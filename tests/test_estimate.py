import math

import numpy as np
import pytest

import eqmdm


@pytest.mark.parametrize(
    "value, error, text",
    [
        (-12.0347, 0.7123, "-12.03 ± 0.71"),
        (-2.8, 0.16, "-2.80 ± 0.16"),
        (1234.5, 56.7, "1234 ± 57"),
        (0.1234567, 0.00099, "0.12346 ± 0.00099"),
        (1.5, 1.0, "1.5 ± 1.0"),
        (1.5, 0.0, "1.5 ± 0"),
        (1.5, math.nan, "1.5 ± nan"),
        (1.5, math.inf, "1.5 ± inf"),
    ],
)
def test_text_has_two_digits_of_the_error(value, error, text):
    assert str(eqmdm.Estimate(value, error)) == text


def test_error_of_a_mean_is_the_spread_of_repeated_means():
    generator = np.random.Generator(np.random.PCG64(0))
    estimates = [
        eqmdm.Estimate.from_mean(generator.exponential(3.0, 50)) for _ in range(400)
    ]
    values, errors = np.asarray(estimates).T
    # The spread of 400 means is known to 1 / sqrt(800), of which this is 4.
    np.testing.assert_allclose(np.sqrt(np.mean(errors**2)), values.std(), rtol=0.15)
    assert abs(values.mean() - 3.0) < 5 * values.std() / 20


def test_mean_of_one_value_has_no_error():
    value, error = eqmdm.Estimate.from_mean(np.asarray([2.0]))
    assert value == 2.0 and math.isnan(error)
