"""The cases of `first_calls.py`, for functions that take a score and a diffusion."""

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


_OBJECTIVE = eqmdm.Objective(grey_levels=eqmdm.GreyLevels(17))
_OPTIMISER = eqmdm.make_optimiser(2e-4)
_DENOISER_RANGE = (-9.0, 13.3)


def cld_interval():
    return lambda: eqmdm.CLD(log_snr_range=(-9.0, 13.3))


def unet():
    return lambda: make_unet(2)


def _create(diffusion):
    model = make_unet(2), diffusion
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


def _score():
    diffusion = eqmdm.CLD()
    return eqmdm.FreeScore(make_unet(2), diffusion), diffusion


def _denoiser_score():
    diffusion = eqmdm.VPSDE()
    denoiser = eqmdm.PreconditionedDenoiser(
        make_unet(1), data_std=0.5, log_snr_range=_DENOISER_RANGE
    )
    return eqmdm.DenoiserScore(denoiser, diffusion), diffusion


def elbo():
    model, x = _score(), example()
    return lambda: eqmdm.elbo(*model, x, key=KEY)


def _sample(model, solver):
    return lambda: eqmdm.sample(
        *model, SHAPE, key=KEY, n_samples=N_SAMPLES, n_steps=N_STEPS, solver=solver
    )


def sample():
    return _sample(_score(), dfx.SEA())


def sample_denoiser():
    return _sample(_denoiser_score(), eqmdm.Collapsed())


def _log_likelihood(model):
    x, probe = example(), eqmdm.HutchinsonDivergence(1)
    return lambda: eqmdm.log_likelihood(*model, x, key=KEY, divergence=probe)


def log_likelihood():
    return _log_likelihood(_score())


def log_likelihood_denoiser():
    return _log_likelihood(_denoiser_score())
