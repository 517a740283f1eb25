"""Tests of users' own samplers, written with public names alone."""

from typing import final

import jax
import jax.numpy as jnp
from references import mixture_denoiser, normal_denoiser

import eqmdm
from eqmdm import DPMSolver
from helpers import tree_allclose


@final
class DDIM(eqmdm.AbstractStepSampler):
    grid: eqmdm.AbstractGrid = eqmdm.LogSNRGrid()
    clip: tuple[float, float] | None = None

    def n_evaluations(self, n_steps):
        return n_steps + 1

    def prepare(self, model, times, y):
        return y, jax.vmap(model.diffusion.compute_kernel)(times), (), ()

    def step(self, model, start, end, coefficients, y, memory, *, key):
        x = model.data_estimate(start, y)
        return end.perturb(x, start.whiten(y - start.mean(x))), memory


def test_own_step_sampler_is_a_sampler_like_any_other(key):
    # With one variable there is one root, so this is the solver of order 1.
    diffusion = eqmdm.VPSDE()
    model = eqmdm.DenoiserModel(mixture_denoiser, diffusion)
    options = {"key": key, "n_samples": 4, "n_steps": 8, "full_output": True}
    options["save_at"] = eqmdm.SaveAt(log_snrs=jnp.asarray([-1.0, 3.0]))
    own, expected = (
        eqmdm.sample(model, (2,), sampler=sampler, **options)
        for sampler in (DDIM(), DPMSolver(order=1))
    )
    assert tree_allclose(own.x, expected.x, rtol=0, atol=1e-10)
    assert own.trajectory.states.shape == (4, 2, 1, 2)
    estimates = own.trajectory.estimates, expected.trajectory.estimates
    assert tree_allclose(*estimates, rtol=0, atol=1e-10)
    assert jnp.all(own.n_evaluations == 11)


@final
class OneJump(eqmdm.AbstractSampler):
    """The posterior mean, at once."""

    grid: eqmdm.AbstractGrid = eqmdm.UniformGrid(n_steps=1)

    def times(self, diffusion, n_steps=None, dtype=None, *, through=None):
        return self.grid(diffusion, n_steps, dtype, through=through)

    def n_evaluations(self, n_steps):
        return 1

    def solve(self, model, y, times, *, key, saved=None):
        kernel = model.diffusion.compute_kernel(times[0])
        return eqmdm.SampleResult(model.data_estimate(kernel, y))


def test_own_sampler_of_any_kind_is_one_like_any_other(key):
    diffusion = eqmdm.VPSDE()
    model = eqmdm.DenoiserModel(normal_denoiser, diffusion)
    x = eqmdm.sample(model, (3,), key=key, n_samples=2, sampler=OneJump())
    assert x.shape == (2, 3)
    y = jnp.ones((1, 3))
    kernel = diffusion.compute_kernel(diffusion.t1)
    expected = normal_denoiser(kernel.log_snr, kernel.project(y))
    actual = OneJump()(model, y, OneJump().times(diffusion), key=key)
    assert tree_allclose(actual, expected, rtol=1e-12, atol=0)
