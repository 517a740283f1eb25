"""The samplers take models of every kind, also of a user's own."""

from typing import final

import equinox as eqx
import pytest
from references import mixture_denoiser

import eqmdm
from eqmdm import SSCS, QuadraticGrid
from helpers import tree_allclose


def exact_score(diffusion, t, y):
    return eqmdm.DenoiserModel(mixture_denoiser, diffusion).score(t, y)


def noise_predictor(diffusion):
    def network(t, y):
        root = diffusion.compute_kernel(t).root
        score = exact_score(diffusion, t, y)
        return -(root.T @ score.reshape(len(y), -1)).reshape(y.shape)

    return network


@final
class Foreign(eqmdm.AbstractModel):
    """A kind of model that the samplers know nothing of."""

    diffusion: eqmdm.AbstractLinearDiffusion
    data_std = 1.0
    log_snr_range = None
    has_denoiser = False
    takes_snr_vector = False

    def under(self, diffusion):
        raise AssertionError("samplers do not ask for this")

    def with_condition(self, condition):
        raise AssertionError("samplers do not ask for this")

    def prior_estimate(self, shape, dtype):
        return None

    def denoise(self, log_snr, z):
        raise AssertionError("samplers do not ask for this")

    def denoiser_residual(self, log_snr, z):
        raise AssertionError("samplers do not ask for this")

    def whitened_error(self, kernel, x, noise, y):
        raise AssertionError("samplers do not ask for this")

    def score_at(self, kernel, y):
        return exact_score(self.diffusion, kernel.t, y)

    def data_estimate(self, kernel, y):
        return mixture_denoiser(kernel.log_snr, kernel.project(y))


MODELS = {
    "noise": lambda d: eqmdm.NoiseModel(noise_predictor(d), d),
    "function": lambda d: eqmdm.FunctionModel(lambda t, y: exact_score(d, t, y), d),
    "foreign": Foreign,
}


@pytest.mark.slow
def test_all_kinds_of_models_lead_to_the_same_samples(key):
    diffusion = eqmdm.CLD(interval=eqmdm.TimeInterval(0.05, 1.0))
    times = QuadraticGrid()(diffusion, 6)
    y = diffusion.prior.sample((3, 2), key=key)
    denoiser = lambda d: eqmdm.DenoiserModel(mixture_denoiser, d)

    @eqx.filter_jit
    def run(make):
        return SSCS()(make(diffusion), y, times, key=key)

    # The sampler uses the score in its steps, and the data estimate at its end.
    expected = run(denoiser)
    assert expected.shape == (3, 2)
    for kind, make in MODELS.items():
        print(kind)
        actual = run(make)
        assert tree_allclose(actual, expected, rtol=0, atol=1e-9)
