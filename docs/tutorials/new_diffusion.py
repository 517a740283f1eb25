# %% [markdown]
# # A new diffusion in ten lines
#
# A *diffusion* here is a linear stochastic process that turns data into noise. You define
# one by matrices; everything else follows from them. This page defines one that has no
# name, looks at it, checks it against simulation, and gets a bound, samples and a
# likelihood from it.

# %%
import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

import eqmdm


# %% [markdown]
# ## Two matrices
#
# Every number of the data gets $K - 1$ companions, its *auxiliary variables*. The
# process moves all $K$ of them,
#
# $$\mathrm{d}y = -\beta(t) (Q + D) y \,\mathrm{d}t + \sqrt{2 \beta(t) D} \,\mathrm{d}w,$$
#
# where $Q$ is skew-symmetric (it couples the variables without losing anything), $D$
# is positive semidefinite (it lets noise in, and takes energy out at the same rate), and
# $\beta$ is the rate at which the process runs. For every such $Q$ and $D$ the process
# ends in the standard normal law, and every linear process that does so can be written
# in this way.
#
# Below, the data are pushed by a velocity, which is pushed by an acceleration, and noise
# enters the last two.

# %%
diffusion = eqmdm.LinearDiffusion(
    skew=[[0.0, -1.0, 0.0], [1.0, 0.0, -2.0], [0.0, 2.0, 0.0]],  # Q
    dissipation=[[0.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 2.0]],  # D
)
print(diffusion)
print(f"{diffusion.n_vars} variables, on [{diffusion.t0:.3f}, {diffusion.t1:.3f}]")

# %% [markdown]
# The rate grows from 0.1 to 10 by default, and the process is used on times from 0.001 to
# 1. Both are arguments, as the printed text shows.
#
# ## Look at it
#
# [`eqmdm.forward_sde`][] gives the process as terms that Diffrax solves. Here are eight
# paths from each of two data points.


# %% alt="Paths of data, velocity and acceleration from -1 and 1, which become indistinguishable"
times = jnp.linspace(0.0, 1.0, 201)


@jax.jit
def path(x, key):
    key_path, key_start = jr.split(key)
    problem = eqmdm.forward_sde(diffusion, x, key=key_path)
    return diffrax.diffeqsolve(
        problem.terms,
        diffrax.SEA(),
        problem.t0,
        problem.t1,
        dt0=0.005,
        y0=problem.initial(key=key_start),
        saveat=diffrax.SaveAt(ts=times),
    ).ys


figure, axes = plt.subplots(1, 3, sharey=True)
for start, color in (-1.0, "#0072B2"), (1.0, "#D55E00"):
    keys = jr.split(jr.key(0), 8)
    paths = jax.vmap(lambda key: path(jnp.asarray(start), key))(keys)
    for row, name in enumerate(("data", "velocity", "acceleration")):
        axes[row].plot(times, paths[:, :, row].T, color=color, lw=0.6)
        axes[row].set(title=name, xlabel="diffusion time")

# %% [markdown]
# The data move smoothly, because noise reaches them only through the velocity. At the
# end nothing of the start is left to see.
#
# ## Its kernel is known
#
# The state at a time $t$, given the data $x$, is normal with mean $a(t) x$ and covariance
# $L(t) L(t)^\top$. [`eqmdm.PerturbationKernel`][] holds these, from the matrices alone.
# Compare it with four thousand simulated states: every entry of their mean and covariance
# agrees, within five of its standard errors.

# %%
kernel = diffusion.perturbation_kernel(jnp.asarray(0.5))
n = 4000


@jax.jit
def simulated(key):
    key_path, key_start = jr.split(key)
    problem = eqmdm.forward_sde(diffusion, jnp.asarray(1.0), key=key_path)
    return diffrax.diffeqsolve(
        problem.terms,
        diffrax.SEA(),
        0.0,
        0.5,
        dt0=0.001,
        y0=problem.initial(key=key_start),
    ).ys[0]


states = np.asarray(jax.vmap(simulated)(jr.split(jr.key(1), n)))
covariance = kernel.root @ kernel.root.T
variances = np.diag(covariance)
mean_error = np.sqrt(variances / n)
covariance_error = np.sqrt((np.outer(variances, variances) + covariance**2) / n)
print("mean     ", np.asarray(kernel.mean_map).round(3))
print("simulated", states.mean(0).round(3), "±", mean_error.round(3))
print(f"covariance\n{np.asarray(covariance).round(3)}")
print(f"simulated\n{np.cov(states.T).round(3)}")
assert np.all(np.abs(states.mean(0) - kernel.mean_map) < 5 * mean_error)
assert np.all(np.abs(np.cov(states.T) - covariance) < 5 * covariance_error)

# %% [markdown]
# No simulation is needed from here on: training draws its noisy states from the kernel.
#
# ## How fast it forgets
#
# One number says how much of the data is left in the whole state, data row and auxiliary
# variables together: the signal-to-noise ratio $\mathrm{SNR}(t) = a^\top \Sigma^{-1} a$.
# The [next tutorial](sufficient_statistic.md) shows why it is the only one that matters.

# %% alt="Log-SNR in time of the new diffusion, VPSDE and CLD, from above 10 to below 0"
t = jnp.geomspace(1e-3, 1.0, 200)
figure, axes = plt.subplots()
named = {"ours": diffusion, "VPSDE": eqmdm.VPSDE(), "CLD": eqmdm.CLD()}
for (name, other), line in zip(named.items(), ("-", "--", "-."), strict=True):
    axes.plot(t, jax.vmap(other.log_snr)(t), line, label=name)
axes.set(xscale="log", xlabel="diffusion time", ylabel="log-SNR")
axes.legend()
print(f"ours ends at a log-SNR of {float(diffusion.log_snr(diffusion.t1)):.2f}")

# %% [markdown]
# Ours begins with more signal than the others and ends with more: it would leave a trace
# of the data in what is meant to be pure noise. Give the interval in log-SNR rather than
# in time, and the end comes when the noise level says so.

# %%
diffusion = eqmdm.LinearDiffusion(
    skew=[[0.0, -1.0, 0.0], [1.0, 0.0, -2.0], [0.0, 2.0, 0.0]],
    dissipation=[[0.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 2.0]],
    interval=eqmdm.LogSNRInterval(-9.0, 13.3),
)
print(f"times from {float(diffusion.t0):.4f} to {float(diffusion.t1):.4f}")

# %% [markdown]
# ## Use it
#
# A model is a network together with its diffusion. To see that all is well, take a
# "network" that is exact: if the data are standard normal, the expected data given a
# noisy version of it is a closed form.

# %%
denoiser = lambda log_snr, z: z / (1 + jnp.exp(-log_snr))
model = eqmdm.DenoiserModel(denoiser, diffusion)
x = jnp.ones(8)
truth = float(jax.scipy.stats.norm.logpdf(x).sum())

bound = eqmdm.elbo(model, x, key=jr.key(2), n_draws=10_000)
likelihood = eqmdm.log_likelihood(model, x, key=jr.key(3))
samples = eqmdm.sample(model, (8,), key=jr.key(4), n_samples=2000)
print(f"log p(x)   {truth:.3f} nats")
print(f"bound      {float(bound.total):.3f} ± {float(bound.standard_error):.3f}")
print(f"likelihood {float(likelihood.log_likelihood):.3f}")
print(f"samples    standard deviation {float(samples.std()):.3f}")
assert abs(bound.total - truth) < 5 * bound.standard_error
assert abs(likelihood.log_likelihood - truth) < 1e-2

# %% [markdown]
# The bound is an estimate with a standard error; its value for *one* example is noisy,
# because each draw looks at one random time. Averaged over a data set it is precise. The
# likelihood solves an ODE and has no such noise.
#
# ## What cannot work is refused
#
# Noise has to reach every variable. If it cannot, there is no kernel, and the error says
# so when the diffusion is built.

# %% raises=ValueError
eqmdm.LinearDiffusion(
    skew=[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    dissipation=[[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]],
)

# %% [markdown]
# ## Further
#
# - Matrices that change in time on their own: [`eqmdm.TimeVaryingDiffusion`][] and
#   [`eqmdm.TwoScheduleDiffusion`][]. Matrices that differ by coordinate:
#   [`eqmdm.BandedDiffusion`][].
# - A process as a class of its own, with parameters: [Add a
#   diffusion](../contributing/add_a_diffusion.md).
# - Matrices that are trained: [Learning a diffusion](learn_a_diffusion.md).
