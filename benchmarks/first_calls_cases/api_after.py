"""The cases of `first_calls.py`, for functions that take a model."""

import functools

import diffrax as dfx
from bare import (
    BATCH,
    KEY,
    N_SAMPLES,
    N_STEPS,
    SHAPE,
    example,
    examples,
    make_unet,
)

import eqmdm


_OBJECTIVE = eqmdm.Objective(levels=eqmdm.GreyLevels(17))
_OPTIMISER = eqmdm.make_optimiser(2e-4)
_DENOISER_RANGE = (-9.0, 13.3)


def cld_interval():
    return lambda: eqmdm.CLD(interval=eqmdm.LogSNRInterval(-9.0, 13.3))


def unet():
    return lambda: make_unet(2)


def _create(diffusion):
    model = eqmdm.NoiseModel(make_unet(2), diffusion)
    return functools.partial(eqmdm.TrainState.create, model, _OPTIMISER, key=KEY)


def create():
    return _create(eqmdm.CLD())


def _train_step(diffusion):
    state, data = _create(diffusion)(), examples()
    return lambda: eqmdm.train_step(
        state, data, _OBJECTIVE, _OPTIMISER, batch_size=BATCH
    )


def train_step():
    return _train_step(eqmdm.CLD())


def train_step_learned():
    return _train_step(eqmdm.LearnedDiffusion(2, key=KEY))


def _noise_model():
    return eqmdm.NoiseModel(make_unet(2), eqmdm.CLD())


def _denoiser_model():
    denoiser = eqmdm.PreconditionedDenoiser(
        make_unet(1), data_std=0.5, log_snr_range=_DENOISER_RANGE
    )
    return eqmdm.DenoiserModel(denoiser, eqmdm.VPSDE())


def elbo():
    model, x = _noise_model(), example()
    return lambda: eqmdm.elbo(model, x, key=KEY)


def _sample(model, sampler):
    return lambda: eqmdm.sample(
        model, SHAPE, key=KEY, n_samples=N_SAMPLES, n_steps=N_STEPS, sampler=sampler
    )


def sample():
    return _sample(_noise_model(), dfx.SEA())


def sample_denoiser():
    return _sample(_denoiser_model(), eqmdm.DPMSolver())


def _log_likelihood(model):
    x, probe = example(), eqmdm.HutchinsonDivergence(1)
    return lambda: eqmdm.log_likelihood(model, x, key=KEY, divergence=probe)


def log_likelihood():
    return _log_likelihood(_noise_model())


def log_likelihood_denoiser():
    return _log_likelihood(_denoiser_model())
