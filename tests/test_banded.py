"""Diffusions whose matrices differ by coordinate."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from correlated import model_of, two_speeds

import eqmdm
from helpers import slow, slow_but, tree_allclose


# --- Kernels -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [slow(eqmdm.VPSDE), eqmdm.CLD, slow(eqmdm.ALDA), eqmdm.SubVPSDE],
    ids=lambda k: k.__name__,
)
def test_each_coordinate_has_the_laws_of_its_band(kind):
    bands = [1, 0, 1]
    parts = two_speeds(kind)
    banded = eqmdm.BandedDiffusion(parts, bands)

    @eqx.filter_jit
    def laws(diffusion, s, t):
        return (
            diffusion.compute_kernel(t),
            diffusion.compute_transition(s, t),
            diffusion.drift_matrix(t),
            diffusion.diffusion_matrix(t),
            diffusion.prior,
            diffusion.log_snr(t),
        )

    s, t = jnp.asarray(0.1), jnp.asarray(0.4)
    whole = jax.device_get(laws(banded, s, t))
    expected = [laws(part, s, t) for part in parts]
    for coordinate, band in enumerate(bands):
        # The time of a kernel is the same for all coordinates.
        part = lambda leaf, i=coordinate: leaf[..., i] if leaf.ndim > 0 else leaf
        actual = jax.tree.map(part, whole)
        # The same operations on constants that are arrays and not numbers.
        assert tree_allclose(actual, expected[band], rtol=1e-13, atol=1e-15)


def test_bands_of_different_kinds_and_ranks_stand_side_by_side():
    interval = eqmdm.TimeInterval(1e-3, 1.0)
    square = eqmdm.LinearDiffusion(
        [[0.0, -1.0], [1.0, 0.0]], np.eye(2).tolist(), interval=interval
    )
    parts = [square, eqmdm.CLD(interval=interval)]
    banded = eqmdm.BandedDiffusion(parts, [0, 1, 1])

    @jax.jit
    def compute(t):
        roots = [part.compute_kernel(t).root for part in parts]
        return banded.diffusion_matrix(t), banded.compute_kernel(t).root, roots

    G, root, expected = jax.device_get(compute(jnp.asarray(0.5)))
    assert G.shape == (2, 2, 3)
    # The columns of CLD's single noise are padded with zeros.
    assert np.count_nonzero(G[:, :, 0]) == 2 and np.count_nonzero(G[:, :, 1]) == 1
    for coordinate in range(2):
        actual = root[..., coordinate]
        assert tree_allclose(actual, expected[coordinate], rtol=1e-13, atol=1e-15)


def test_stacked_parameters_are_bands():
    rates = np.asarray([5.0, 8.0, 13.0])
    stacked = eqx.filter_vmap(
        lambda rate: eqmdm.VPSDE(schedule=eqmdm.LinearSchedule(0.1, rate))
    )(jnp.asarray(rates))
    banded = eqmdm.BandedDiffusion(stacked, [2, 1, 0])
    each = [
        eqmdm.VPSDE(schedule=eqmdm.LinearSchedule(0.1, float(rate))) for rate in rates
    ]
    separate = eqmdm.BandedDiffusion(each, [2, 1, 0])
    log_snrs = jax.jit(lambda t: (banded.log_snr(t), separate.log_snr(t)))
    actual, expected = log_snrs(jnp.asarray(0.3))
    assert tree_allclose(actual, expected, rtol=1e-13, atol=0.0)


def test_constants_are_no_parameters_and_learned_bands_are():
    constants = eqmdm.BandedDiffusion(two_speeds(eqmdm.CLD), [0, 1, 1])
    assert not jax.tree.leaves(eqx.filter(constants, eqx.is_inexact_array))
    interval = eqmdm.TimeInterval()
    learned = [
        eqmdm.LearnedDiffusion(2, key=jr.key(i), interval=interval) for i in (0, 1)
    ]
    banded = eqmdm.BandedDiffusion(learned, [0, 1, 1])
    x = jnp.asarray([0.3, -0.2, 0.5])

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(diffusion):
        model = eqmdm.FunctionModel(lambda t, y: -y, diffusion)
        return eqmdm.elbo(model, x, key=jr.key(0)).total

    for leaf in map(np.asarray, jax.tree.leaves(gradient(banded))):
        # Each band has its own derivative.
        assert leaf.shape[0] == 2 and np.all(np.any(leaf.reshape(2, -1) != 0, axis=1))


# --- Equal bands ---------------------------------------------------------------------

SAMPLERS = {
    "dpm": eqmdm.DPMSolver(),
    "dpm-3": eqmdm.DPMSolver(order=3),
    "heun": eqmdm.EDMHeun(),
    "ancestral": eqmdm.AncestralSampler(),
    "sscs": eqmdm.SSCS(),
    "sea": eqmdm.DiffraxSampler(diffrax.SEA()),
    "ode": eqmdm.DiffraxSampler(diffrax.Tsit5(), eqmdm.probability_flow),
    "langevin": eqmdm.LangevinCorrector(eqmdm.DPMSolver()),
}


@pytest.mark.parametrize("name", slow_but(["heun", "sea"], SAMPLERS))
def test_samples_of_equal_bands_are_those_of_the_shared_diffusion(name, key):
    interval = eqmdm.TimeInterval(1e-3, 1.0)
    shared = eqmdm.CLD(interval=interval)
    banded = eqmdm.BandedDiffusion([shared, shared], [1, 0, 1])
    shared, banded = (
        eqmdm.sample(
            model_of(diffusion),
            (3,),
            key=key,
            n_samples=2,
            n_steps=6,
            sampler=SAMPLERS[name],
        )
        for diffusion in (shared, banded)
    )
    # Rounding, which the steps magnify a little.
    assert tree_allclose(banded, shared, rtol=1e-9, atol=1e-11)


FORMS = {
    "low-variance": eqmdm.LowVariance(),
    "given-start": eqmdm.LowVariance(given_start=True),
    "denoising": eqmdm.DenoisingScoreMatching(),
    "hybrid": eqmdm.HybridScoreMatching(),
    "implicit": eqmdm.ImplicitScoreMatching(),
}


@pytest.mark.parametrize("name", ["low-variance", *map(slow, list(FORMS)[1:])])
def test_bounds_of_equal_bands_are_those_of_the_shared_diffusion(name, key):
    shared = eqmdm.ALDA()
    banded = eqmdm.BandedDiffusion([shared, shared], [1, 0, 1])
    x = jnp.asarray([0.3, -1.0, 0.4])
    given = FORMS[name].conditions_on_start
    decoders = [eqmdm.StartDecoder()] + [eqmdm.DataDecoder()] * (not given)
    for decoder in decoders:
        shared_bound, banded_bound = (
            eqmdm.elbo(
                model_of(diffusion),
                x,
                key=key,
                form=FORMS[name],
                decoder=decoder,
                time_sampler=eqmdm.UniformTimeSampler(),
            ).terms()
            for diffusion in (shared, banded)
        )
        # Rounding, of terms of order 10.
        assert tree_allclose(banded_bound, shared_bound, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "clock", [None, slow(eqmdm.LogSNRClock())], ids=["own-time", "log-snr"]
)
def test_likelihoods_of_equal_bands_are_those_of_the_shared_diffusion(clock, key):
    shared = eqmdm.CLD(interval=eqmdm.TimeInterval(1e-3, 1.0))
    banded = eqmdm.BandedDiffusion([shared, shared], [1, 0, 1])
    x = jnp.asarray([0.3, -1.0, 0.4])
    routes = [eqmdm.AugmentedRoute(clock=clock)]
    if clock is not None:
        routes += [eqmdm.CollapsedRoute(clock), eqmdm.CollapsedRoute()]
    for route in routes:
        values = [
            eqmdm.log_likelihood(model_of(d), x, key=key, route=route).log_likelihood
            for d in (shared, banded)
        ]
        # Both solves have the tolerance of 1e-5 a coordinate, on clocks whose readings
        # differ by rounding or, for the angle, by the scale of the data (1 in both).
        assert tree_allclose(values[1], values[0], rtol=0.0, atol=1e-4)


# --- Bad input -----------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_bad_bands_are_refused_by_name():
    parts = two_speeds(eqmdm.VPSDE)
    with pytest.raises(ValueError, match=r"`bands` must lie between 0 and 1.*0 to 2"):
        eqmdm.BandedDiffusion(parts, [0, 2])
    with pytest.raises(ValueError, match=r"`bands` must be integers.*float64"):
        eqmdm.BandedDiffusion(parts, [0.0, 1.0])
    with pytest.raises(ValueError, match=r"`diffusions` must have one .*got none"):
        eqmdm.BandedDiffusion([], [0])
    with pytest.raises(TypeError, match=r"`diffusions` must be linear.*str for band 1"):
        eqmdm.BandedDiffusion([parts[0], "cld"], [0, 1])
    with pytest.raises(ValueError, match=r"same number of variables; got \[1, 2\]"):
        eqmdm.BandedDiffusion([parts[0], eqmdm.CLD(interval=parts[0].interval)], [0, 1])
    with pytest.raises(ValueError, match=r"same `interval` in time.*\[0.0001, 1.0\]"):
        eqmdm.BandedDiffusion([parts[0], eqmdm.VPSDE()], [0, 1])
    with pytest.raises(ValueError, match="`diffusions` must be a sequence"):
        eqmdm.BandedDiffusion(eqmdm.VPSDE(), [0, 0])
    moving = eqmdm.LearnedDiffusion(
        2, key=jr.key(0), interval=eqmdm.LogSNRInterval(-4.0, 9.0)
    )
    with pytest.raises(
        ValueError, match="`diffusions` must have an `interval` of known"
    ):
        eqmdm.BandedDiffusion([moving, moving], [0, 1])


def test_data_of_another_shape_are_refused(key):
    diffusion = eqmdm.BandedDiffusion(two_speeds(eqmdm.VPSDE), [0, 1, 1])
    model = model_of(diffusion)
    message = r"must have the shape of the `bands` .*\(3,\).*got \(2,\)"
    with pytest.raises(ValueError, match=message):
        eqmdm.elbo(model, jnp.zeros(2), key=key)
    with pytest.raises(ValueError, match=message):
        eqmdm.sample(model, (2,), key=key)
    with pytest.raises(ValueError, match=message):
        eqmdm.log_likelihood(model, jnp.zeros(2), key=key)
    with pytest.raises(ValueError, match=message):
        eqmdm.forward_sde(diffusion, jnp.zeros(2), key=key)


def test_a_scalar_denoiser_is_refused(key):
    diffusion = eqmdm.BandedDiffusion(two_speeds(eqmdm.VPSDE), [0, 1, 1])
    model = eqmdm.DenoiserModel(lambda log_snr, z: z, diffusion)
    with pytest.raises(TypeError, match="`model` must have a denoiser that is told"):
        eqmdm.elbo(model, jnp.zeros(3), key=key)
    with pytest.raises(TypeError, match="`model` must have a denoiser that is told"):
        eqmdm.sample(model, (3,), key=key)
