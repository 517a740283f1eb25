"""Linear observations: their operators, noise and errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from mixtures import PLANE

import eqmdm
from eqmdm import observe
from helpers import tree_allclose


SHAPE = 6, 4, 2


class Reversed:
    """An orthonormal basis: pixels in reverse order, one sign changed."""

    def forward(self, pixels):
        flat = pixels.reshape(-1)[::-1]
        return flat.at[0].multiply(-1.0).reshape(pixels.shape)

    def inverse(self, coefficients):
        flat = coefficients.reshape(-1).at[0].multiply(-1.0)
        return flat[::-1].reshape(coefficients.shape)


def _seen(shape=SHAPE):
    return np.random.default_rng(0).random(shape) < 0.4


def _symmetric(shape=SHAPE):
    seen = _seen(shape)
    axes = tuple(range(min(2, len(shape))))
    return seen | np.roll(np.flip(seen, axes), 1, axes)


def _blurred(x, std):
    """By sums of waves, without a fast transform."""
    for axis in (0, 1):
        n = x.shape[axis]
        gaps = np.arange(n)[:, None] - np.arange(n)[None]
        frequency = 2 * np.pi * np.fft.fftfreq(n)
        waves = np.exp(1j * gaps[..., None] * frequency)
        matrix = (waves * np.exp(-0.5 * (std * frequency) ** 2)).sum(-1).real / n
        x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
    return x


def _fourier(x):
    transformed = np.fft.fft2(x, axes=(0, 1), norm="ortho")
    return (transformed.real - transformed.imag)[_symmetric()]


MATRIX = np.random.default_rng(1).standard_normal((5, 48))
OPERATORS = {
    "mask": (lambda **kw: observe.mask(_seen(), **kw), lambda x: x[_seen()]),
    "downsample": (
        lambda **kw: observe.downsample(SHAPE, 2, **kw),
        lambda x: x.reshape(3, 2, 2, 2, 2).mean((1, 3)),
    ),
    "blur": (lambda **kw: observe.blur(SHAPE, 0.8, **kw), lambda x: _blurred(x, 0.8)),
    "fourier": (lambda **kw: observe.fourier(_symmetric(), **kw), _fourier),
    "dense": (
        lambda **kw: observe.dense(MATRIX, SHAPE, **kw),
        lambda x: MATRIX @ x.reshape(-1),
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_observe_what_numpy_computes(name, key):
    make, expected = OPERATORS[name]
    x = jr.normal(key, SHAPE)
    actual = make().mv(x)
    assert actual.shape == make().out_structure().shape
    expected = jnp.asarray(expected(np.asarray(x)))
    # Rounding of sums of 48 numbers.
    assert tree_allclose(actual, expected, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("basis", [None, Reversed()], ids=["pixels", "basis"])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_have_their_transposes_and_matrices(name, basis, key):
    operator, plain = OPERATORS[name][0](basis=basis), OPERATORS[name][0]()

    @jax.jit
    def compute(x):
        matrices = operator.as_matrix(), operator.transpose().as_matrix()
        pixels = x if basis is None else basis.inverse(x)
        return *matrices, operator.mv(x), plain.mv(pixels)

    x = jr.normal(key, SHAPE)
    forwards, back, actual, on_pixels = map(np.asarray, compute(x))
    assert tree_allclose(back, forwards.T, rtol=0.0, atol=1e-14)
    product = (forwards @ np.asarray(x).reshape(-1)).reshape(actual.shape)
    assert actual.shape == operator.out_structure().shape
    assert tree_allclose(actual, product, rtol=0.0, atol=1e-13)
    assert tree_allclose(actual, on_pixels, rtol=0.0, atol=1e-13)
    assert operator.transpose().transpose() == operator or basis is not None


def test_operators_take_vectors(key):
    x = jr.normal(key, (6,))
    means = observe.downsample((6,), 3).mv(x)
    assert tree_allclose(means, x.reshape(2, 3).mean(1), rtol=0.0, atol=1e-15)
    seen = np.asarray([True, True, False, False, False, True])
    transformed = np.fft.fft(x, norm="ortho")
    expected = jnp.asarray((transformed.real - transformed.imag)[seen])
    assert tree_allclose(observe.fourier(seen).mv(x), expected, rtol=0.0, atol=1e-14)
    blurred = observe.blur((6,), 100.0).mv(x)
    # A wide density takes the mean.
    assert tree_allclose(blurred, jnp.full(6, x.mean()), rtol=0.0, atol=1e-14)


def test_an_observation_holds_arrays_in_the_default_precision():
    operator = observe.mask(_seen())
    value = np.zeros(int(_seen().sum()), np.int32)
    observation = eqmdm.LinearObservation(operator, value, 1)
    leaves = jax.tree.leaves(observation)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert observation.value.dtype == jnp.result_type(float)


def test_a_covariance_operator_is_its_matrix(key):
    operator = observe.mask([True, True])
    matrix = jnp.asarray([[0.5, 0.2], [0.2, 0.3]])
    model = PLANE.model(eqmdm.VPSDE())
    z, log_snr = jr.normal(key, (2,)), jnp.asarray(0.0)

    def estimate(**noise):
        observation = eqmdm.LinearObservation(operator, [1.0, 2.0], **noise)
        given = model.given(observation, eqmdm.MomentMatching())
        return eqx.filter_jit(given.denoise)(log_snr, z)

    tagged = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
    dense = estimate(covariance=matrix)
    assert tree_allclose(estimate(covariance=tagged), dense, rtol=0.0, atol=1e-14)
    variances = lx.DiagonalLinearOperator(jnp.asarray([0.5, 0.3]))
    tagged = lx.TaggedLinearOperator(variances, lx.positive_semidefinite_tag)
    expected = estimate(noise_std=[0.5**0.5, 0.3**0.5])
    actual = estimate(covariance=tagged)
    assert tree_allclose(actual, expected, rtol=0.0, atol=1e-14)


FIRST = observe.mask([True, False])
TWICE = observe.dense([[1.0, 0.5], [2.0, 1.0]], (2,))
TREE = lx.PyTreeLinearOperator(
    {"a": jnp.ones((2,))}, jax.ShapeDtypeStruct((), jnp.float64)
)


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda o: o(np.eye(2), [1.0, 2.0], 0.1), TypeError, "`operator` must be a Li"),
        (lambda o: o(TREE, [1.0], 0.1), TypeError, "`operator` must be .* one array"),
        (
            lambda o: o(FIRST, [1.0, 2.0], 0.1),
            ValueError,
            r"`value` must .*\(1,\); got",
        ),
        (lambda o: o(FIRST, [np.nan], 0.1), ValueError, "`value` must be finite"),
        (lambda o: o(FIRST, [1.0]), TypeError, "either `noise_std` or.*neither"),
        (
            lambda o: o(FIRST, [1.0], 0.1, covariance=np.eye(1)),
            TypeError,
            "either `noise_std` or `covariance`; got both",
        ),
        (lambda o: o(FIRST, [1.0], -0.1), ValueError, "`noise_std` must be at least 0"),
        (lambda o: o(FIRST, [1.0], np.inf), ValueError, "`noise_std` must be finite"),
        (
            lambda o: o(FIRST, [1.0], [0.1, 0.2]),
            ValueError,
            r"`noise_std` must be a number or.*got \(2,\)",
        ),
        (
            lambda o: o(TWICE, [1.0, 2.0], covariance=[[1.0, 2.0], [2.0, 1.0]]),
            ValueError,
            "`covariance` must be symmetric and positive definite",
        ),
        (
            lambda o: o(TWICE, [1.0, 2.0], covariance=[[1.0, 0.5], [0.0, 1.0]]),
            ValueError,
            "`covariance` must be symmetric and positive definite",
        ),
        (
            lambda o: o(TWICE, [1.0, 2.0], covariance=np.eye(3)),
            ValueError,
            "`covariance` must be a matrix of 2 rows",
        ),
        (
            lambda o: o(
                TWICE, [1.0, 2.0], covariance=lx.MatrixLinearOperator(jnp.eye(2))
            ),
            ValueError,
            "`covariance` must be tagged",
        ),
        (
            lambda o: o(TWICE, [1.0, 2.1], 0.0),
            ValueError,
            "`value` must be one that some data give",
        ),
        (
            lambda o: o(TWICE, [1.0, 2.1], [0.0, 0.0]),
            ValueError,
            "`value` must be one that some data give",
        ),
    ],
)
def test_an_observation_refuses_by_name(make, error, match, unchecked):
    with pytest.raises(error, match=match):
        make(eqmdm.LinearObservation)


def test_an_exact_value_that_data_give_is_accepted():
    eqmdm.LinearObservation(TWICE, [1.0, 2.0], 0.0)
    # The second number has noise, so no value of it is impossible.
    eqmdm.LinearObservation(TWICE, [1.0, 2.1], [0.0, 0.1])


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: observe.mask([0.0, 1.0]), TypeError, "`seen` must be an array of tru"),
        (lambda: observe.mask([False, False]), ValueError, "`seen` must be true some"),
        (lambda: observe.downsample(SHAPE, 4), ValueError, "`factor` must.*(6, 4)"),
        (
            lambda: observe.downsample(SHAPE, 1),
            ValueError,
            "`factor` must be an integer",
        ),
        (lambda: observe.blur(SHAPE, 0.0), ValueError, "`std` must be positive"),
        (lambda: observe.fourier(_seen()), ValueError, "`seen` must be the same at"),
        (lambda: observe.dense(np.eye(3), (2,)), ValueError, "`matrix` must have rows"),
        (
            lambda: observe.dense([[1.0, np.nan]], (2,)),
            ValueError,
            "`matrix` must be finite",
        ),
    ],
)
def test_an_operator_refuses_by_name(make, error, match, unchecked):
    with pytest.raises(error, match=match):
        make()


def _scalar():
    return PLANE.model(eqmdm.VPSDE(), vector=False)


def _observation(operator=FIRST, value=(1.0,), std=0.1):
    return eqmdm.LinearObservation(operator, list(value), std)


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: _scalar().given(3.0), TypeError, "`observation` must be an observat"),
        (
            lambda: _scalar().given(_observation(), "exact"),
            TypeError,
            "`method` must be `eqmdm.Exact",
        ),
        (
            lambda: _scalar().given(_observation(), eqmdm.TwistedSMC()),
            TypeError,
            r"`method` must make a model.*\(model, observation, shape, key=key\)",
        ),
        (
            lambda: _scalar().given(_observation(), eqmdm.Exact()),
            ValueError,
            "`model` must have a denoiser that is told the log-SNR of every coord",
        ),
        (
            lambda: _scalar().given(_observation(TWICE, (1.0, 2.0)), eqmdm.Exact()),
            ValueError,
            "`observation` must be diagonal",
        ),
        (
            lambda: _scalar().given(
                _observation(TWICE, (1.0, 2.0), 0.0), eqmdm.MomentMatching()
            ),
            ValueError,
            "`observation` must have noise for `eqmdm.MomentMatching",
        ),
        (
            lambda: eqmdm.FunctionModel(lambda t, y: -y, eqmdm.CLD()).given(
                _observation()
            ),
            TypeError,
            "`model` must be a `DenoiserModel`",
        ),
        (
            lambda: eqmdm.sample(
                _scalar().given(_observation()), (3,), key=jr.key(0), n_steps=2
            ),
            ValueError,
            r"`observation` must be of data of the shape of one example, \(3,\)",
        ),
        (
            lambda: eqmdm.sample(
                PLANE.model(eqmdm.VPSDE()).given(_observation()),
                (3,),
                key=jr.key(0),
                n_steps=2,
            ),
            ValueError,
            r"`observation` must be of data of the shape of one example, \(3,\)",
        ),
        (lambda: eqmdm.MomentMatching(rtol=0.0), ValueError, "`rtol` must be positive"),
        (
            lambda: eqmdm.MomentMatching(max_steps=0),
            ValueError,
            "`max_steps` must be at least 1",
        ),
        (lambda: eqmdm.TwistedSMC(1), ValueError, "`n_particles` must be at least 2"),
        (lambda: eqmdm.TwistedSMC(2, 0), ValueError, "`n_steps` must be at least 1"),
        (
            lambda: eqmdm.TwistedSMC(8)(
                _scalar(), _observation(std=0.0), (2,), key=jr.key(0)
            ),
            ValueError,
            "`observation` must have noise for `TwistedSMC`",
        ),
        (
            lambda: eqmdm.TwistedSMC(8)(_scalar(), 3.0, (2,), key=jr.key(0)),
            TypeError,
            "`observation` must be an `eqmdm.LinearObservation`",
        ),
        (
            lambda: eqmdm.TwistedSMC(8)(_scalar(), _observation(), (3,), key=jr.key(0)),
            ValueError,
            r"`observation` must be of data of the shape of one example, \(3,\)",
        ),
    ],
)
def test_conditioning_refuses_by_name(make, error, match, unchecked):
    with pytest.raises(error, match=match):
        make()


def test_a_traced_operator_needs_a_method(key):
    model = PLANE.model(eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-9.0, 9.0)))
    z, log_snr = jr.normal(key, (2,)), jnp.asarray(0.0)

    def estimate(gain, method):
        operator = lx.DiagonalLinearOperator(gain)
        observation = eqmdm.LinearObservation(operator, jnp.asarray([1.0, 2.0]), 0.3)
        return model.given(observation, method).denoise(log_snr, z)

    gain = jnp.asarray([1.0, 0.5])
    with pytest.raises(ValueError, match="`method` must be given where the operator"):
        jax.jit(lambda gain: estimate(gain, None))(gain)
    traced = jax.jit(lambda gain: estimate(gain, eqmdm.Exact()))(gain)
    assert tree_allclose(traced, estimate(gain, None), rtol=0.0, atol=1e-13)


def test_a_traced_operator_that_is_not_diagonal_raises_at_run_time():
    model = PLANE.model(eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-9.0, 9.0)))

    @jax.jit
    def estimate(matrix):
        operator = lx.MatrixLinearOperator(matrix)
        observation = eqmdm.LinearObservation(operator, jnp.asarray([1.0, 2.0]), 0.3)
        given = model.given(observation, eqmdm.Exact())
        return given.denoise(jnp.asarray(0.0), jnp.zeros(2))

    assert np.isfinite(estimate(jnp.eye(2))).all()
    with pytest.raises(Exception, match="`observation` must be diagonal"):
        estimate(jnp.asarray([[1.0, 0.5], [0.0, 1.0]])).block_until_ready()
