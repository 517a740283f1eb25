# %% [markdown]
# # Swapping solvers
#
# Sampling solves a differential equation, and the solver decides how many evaluations of the
# network that takes. This page runs several on one model, compares them at equal cost with
# error bars, follows a sample on its way, and writes two solvers: one for Diffrax and one
# sampler of its own.

# %%
from typing import final

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

import eqmdm


# %% [markdown]
# ## A model without a network's errors
#
# Four points on a square, blurred: a mixture whose exact denoiser is a closed form. What
# is left of the error is the solver's.

# %%
corners = jnp.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
std = 0.2


def denoiser(log_snr, z):
    variance = std**2 + jnp.exp(-log_snr)
    shares = jax.nn.softmax(-jnp.sum((z - corners) ** 2, -1) / (2 * variance))
    return shares @ (corners + std**2 / variance * (z - corners))


model = eqmdm.DenoiserModel(
    denoiser, eqmdm.CLD(interval=eqmdm.LogSNRInterval(-9.0, 9.0))
)

# %% [markdown]
# ## One argument
#
# `sampler=` takes one of the library's samplers, any Diffrax solver (for the reverse SDE),
# or a [`eqmdm.DiffraxSampler`][] that says which process to solve and how.

# %%
flow = eqmdm.probability_flow
samplers = {
    "DPM-Solver": eqmdm.DPMSolver(),
    "EDM-Heun": eqmdm.EDMHeun(),
    "SSCS": eqmdm.SSCS(),
    "SEA (SDE)": diffrax.SEA(),
    "Heun (ODE)": eqmdm.DiffraxSampler(diffrax.Heun(), flow),
}
x = eqmdm.sample(model, (2,), key=jr.key(0), n_samples=500, sampler=samplers["SSCS"])
print(x.shape)

# %% [markdown]
# ## Equal cost
#
# A step of Heun evaluates the network twice, one of Euler once. So compare at equal numbers
# of *evaluations*, which `full_output=True` reports. The measure is the sliced Wasserstein
# distance (of order 1) to 2,000 draws of the data, and the grey band that of another 2,000
# draws: no sampler can be expected below the band.

# %% alt="Distance to data against evaluations for five samplers, which fall to the grey band"
n = 2000


def draw_data(key):
    key_corner, key_noise = jr.split(key)
    where = jr.randint(key_corner, (n,), 0, 4)
    return corners[where] + std * jr.normal(key_noise, (n, 2))


data, other = draw_data(jr.key(1)), draw_data(jr.key(2))
distance = lambda x: eqmdm.sliced_wasserstein(x, data, key=jr.key(3), order=1)
floor = distance(other)
figure, axes = plt.subplots(figsize=(7.0, 3.4))
low, high = floor.value - floor.standard_error, floor.value + floor.standard_error
axes.axhspan(low, high, color="#999999", alpha=0.3)
for marker, (name, sampler) in zip("osD^v", samplers.items(), strict=True):
    evaluations, found = [], []
    for n_steps in (5, 10, 20):
        result = eqmdm.sample(
            model,
            (2,),
            key=jr.key(4),
            n_samples=n,
            sampler=sampler,
            n_steps=n_steps,
            full_output=True,
        )
        evaluations.append(int(np.max(result.n_evaluations)))
        found.append(distance(result.x))
    values = [estimate.value for estimate in found]
    errors = [estimate.standard_error for estimate in found]
    axes.errorbar(evaluations, values, errors, marker=marker, ms=4, lw=1, label=name)
    print(
        f"{name:12}", *(f"{e:3}: {f}" for e, f in zip(evaluations, found, strict=True))
    )
axes.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="distance to data")
axes.set_xticks([6, 11, 21, 41], ["6", "11", "21", "41"])
axes.minorticks_off()
axes.legend(ncols=2, fontsize=8)
print(f"other data   {floor}")

# %% [markdown]
# Sample `i` starts from the same draw of the prior with every sampler, so differences
# between the curves are more certain than their error bars say.
#
# Which solver is best depends on the model: [on trained digits](../index.md#what-diffusions-do-to-data)
# DPM-Solver needs half as many evaluations as SEA. [Every Diffrax solver](../benchmarks/results/diffrax_solvers.md) has
# been tested for whether it suits these equations at all. Not all do.
#
# ## Adaptive steps
#
# With a controller the solver chooses its steps, for each sample on its own.

# %%
adaptive = eqmdm.DiffraxSampler(
    diffrax.Tsit5(),
    flow,
    stepsize_controller=diffrax.PIDController(rtol=1e-4, atol=1e-4),
)
result = eqmdm.sample(
    model, (2,), key=jr.key(4), n_samples=n, sampler=adaptive, full_output=True
)
print(f"Tsit5 at 1e-4: {distance(result.x)}, evaluations:")
print(np.percentile(np.asarray(result.n_evaluations), [0, 50, 100]).astype(int))

# %% [markdown]
# ## On the way
#
# `save_at` keeps states, at times or at log-SNRs, together with the data that the model
# expected at each: noise at first, then the mean of all data, then one of the corners.

# %% alt="Estimates of the data at five log-SNRs, which spread from the origin to the corners"
levels = [-4.0, -1.0, 0.0, 1.0, 4.0]
result = eqmdm.sample(
    model,
    (2,),
    key=jr.key(5),
    n_samples=400,
    save_at=eqmdm.SaveAt(log_snrs=levels),
    full_output=True,
)
estimates = np.asarray(result.trajectory.estimates)
figure, axes = plt.subplots(1, 5, figsize=(7.0, 1.7), sharex=True, sharey=True)
for column, panel in enumerate(axes):
    panel.scatter(*estimates[:, column].T, s=1, rasterized=True)
    title = f"log-SNR {float(result.trajectory.log_snrs[column]):.0f}"
    panel.set(title=title, aspect="equal", xticks=[-1, 1], yticks=[-1, 1])

# %% [markdown]
# ## A Diffrax solver of your own
#
# Nine lines: Euler-Maruyama. It goes where Diffrax's solvers go, and gives what Diffrax's
# own gives.


# %%
class EulerMaruyama(diffrax.AbstractItoSolver):
    term_structure = diffrax.AbstractTerm
    interpolation_cls = diffrax.LocalLinearInterpolation

    def order(self, terms):
        return 1

    def init(self, terms, t0, t1, y0, args):
        return None

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        y1 = y0 + terms.vf_prod(t0, y0, args, terms.contr(t0, t1))
        return y1, None, {"y0": y0, "y1": y1}, None, diffrax.RESULTS.successful


both = [
    eqmdm.sample(model, (2,), key=jr.key(6), n_samples=64, sampler=solver)
    for solver in (EulerMaruyama(), diffrax.Euler())
]
print("largest difference to Diffrax's:", float(jnp.abs(both[0] - both[1]).max()))
assert jnp.abs(both[0] - both[1]).max() < 1e-4

# %% [markdown]
# ## A sampler of your own
#
# A sampler sees the model and its kernels, not only a vector field. This one is DDIM: it
# estimates the data, and moves to the next time with the same noise.


# %%
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


ours = eqmdm.sample(model, (2,), key=jr.key(7), n_samples=n, sampler=DDIM())
print(f"DDIM, 50 steps: {distance(ours)}")

# %% [markdown]
# [Your own sampler](../how-to/own_sampler.md) goes on from here, and [Add a
# sampler](../contributing/add_a_sampler.md) turns one into a part of the library, with its
# tests.
#
# ## From the command line
#
# ```console
# $ eqmdm sample runs/demo --solver sea --steps 100
# $ eqmdm solver-study runs/demo --solvers dpm,edm-heun,sea,mymodule:MySolver
# ```
#
# The study makes the picture above for a trained run, with a table and its settings.
