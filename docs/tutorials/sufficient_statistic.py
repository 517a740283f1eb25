# %% [markdown]
# # What z and log-SNR are
#
# A state of a multivariate diffusion has $K$ numbers for every number of the data. This
# page shows, in pictures, that a *single* one of them, $z$, holds everything that the
# state knows about the data, and that one number, the log signal-to-noise ratio, says how
# much that is. It is why one network serves every diffusion in this library.

# %%
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

import eqmdm


# %% [markdown]
# ## The state at one time
#
# Take CLD, with a velocity for every data coordinate, and data that are -1 or 1. At a
# time $t$ the state is $y = a x + L \epsilon$: a normal cloud around $a x$ in the plane
# of data and velocity.

# %% alt="Two tilted clouds of states in the plane of data and velocity, and the direction z"
diffusion = eqmdm.CLD()
kernel = diffusion.perturbation_kernel(jnp.asarray(0.35))
n = 1500
x = jnp.where(jnp.arange(n) < n // 2, -1.0, 1.0)
noise = jr.normal(jr.key(0), (n, 2))
y = jax.vmap(kernel.perturb)(x, noise)

figure, axes = plt.subplots(figsize=(4.6, 3.6))
for value, color in (-1.0, "#0072B2"), (1.0, "#D55E00"):
    of = y[x == value]
    axes.scatter(
        *of.T, s=3, color=color, alpha=0.4, rasterized=True, label=f"x = {value}"
    )
w = kernel.data_weights
direction = w / jnp.linalg.norm(w)
axes.annotate(
    "z",
    xy=2.0 * direction,
    xytext=-2.0 * direction,
    arrowprops={"arrowstyle": "->", "color": "#009E73", "lw": 2},
    color="#009E73",
)
axes.set(xlabel="data", ylabel="velocity", aspect="equal")
axes.legend(loc="lower right")

# %% [markdown]
# The arrow is the direction $w = \Sigma^{-1} a / \mathrm{SNR}$, with $\Sigma = L L^\top$
# and $\mathrm{SNR} = a^\top \Sigma^{-1} a$. Projected on it, the state becomes
#
# $$z = w \cdot y = x + \sigma \epsilon, \qquad \sigma = \mathrm{SNR}^{-1/2}:$$
#
# the data plus noise of one known size.

# %% alt="Histograms of z given each value of the data, with the normal density around it"
z = jax.vmap(kernel.project)(y)
sigma = float(kernel.sigma)
figure, axes = plt.subplots()
grid = np.linspace(-4, 4, 300)
for value, color in (-1.0, "#0072B2"), (1.0, "#D55E00"):
    axes.hist(np.asarray(z[x == value]), 40, density=True, color=color, alpha=0.35)
    axes.plot(grid, jax.scipy.stats.norm.pdf(grid, value, sigma), color=color)
axes.set(xlabel="z", ylabel="density")
print(f"log-SNR {float(kernel.log_snr):.3f}, so sigma = {sigma:.3f}")
print(f"measured: {float((z - x).std()):.3f} ± {sigma / (2 * n) ** 0.5:.3f}")

# %% [markdown]
# ## Nothing is lost
#
# What does the rest of the state say about the data? Given $z$, nothing: $z$ is a
# *sufficient statistic*. The posterior probability of $x = 1$, from the whole state by
# Bayes' rule and from $z$ alone, is the same for every state.

# %%
whole = jax.vmap(
    lambda y: jax.nn.sigmoid(
        jax.scipy.stats.multivariate_normal.logpdf(
            y, kernel.mean_map, kernel.root @ kernel.root.T
        )
        - jax.scipy.stats.multivariate_normal.logpdf(
            y, -kernel.mean_map, kernel.root @ kernel.root.T
        )
    )
)(y)
from_z = jax.nn.sigmoid(2 * z / sigma**2)
print(f"largest difference: {float(jnp.abs(whole - from_z).max()):.1e}")
assert jnp.abs(whole - from_z).max() < 1e-4

# %% [markdown]
# So the expected data given the state, which is what a network has to learn, is a function
# of $z$ and of $\sigma$ alone: a *denoiser* $\hat x(\lambda, z)$ with $\lambda = \log
# \mathrm{SNR}$. The score of the whole state follows from it in closed form,
#
# $$\nabla_y \log p_t(y) = \Sigma^{-1} (a \, \hat x(\lambda, z) - y),$$
#
# and [`eqmdm.DenoiserModel`][] computes exactly that. Here it is for the two points,
# whose denoiser is a hyperbolic tangent, against automatic differentiation of the
# mixture's log-density.

# %%
denoiser = lambda log_snr, z: jnp.tanh(z * jnp.exp(log_snr))
model = eqmdm.DenoiserModel(denoiser, diffusion)


def log_density(y):
    covariance = kernel.root @ kernel.root.T
    parts = [
        jax.scipy.stats.multivariate_normal.logpdf(
            y, sign * kernel.mean_map, covariance
        )
        for sign in (-1.0, 1.0)
    ]
    return jax.nn.logsumexp(jnp.stack(parts))


state = y[0]
print("model:          ", model.score(kernel.t, state))
print("autodiff:       ", jax.grad(log_density)(state))
assert jnp.allclose(
    model.score(kernel.t, state), jax.grad(log_density)(state), rtol=1e-3
)

# %% [markdown]
# ## Time is not comparable, log-SNR is
#
# The same time means something else for each diffusion; the same log-SNR means the same
# noise in $z$. Left, log-SNR in time. Right, the expected squared error of the denoiser
# of the two points, drawn in log-SNR: one curve for all.

# %% alt="Log-SNR in time for five diffusions, and their denoising errors on one curve"
diffusions = {
    "VPSDE": eqmdm.VPSDE(),
    "CLD": eqmdm.CLD(),
    "MALDA": eqmdm.MALDA(),
    "PSLD": eqmdm.PSLD(),
    "critical": eqmdm.CriticalThirdOrder(),
}
lines = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
markers = "osD^v"


@jax.jit
def denoising_error(kernel, key):
    """The mean squared error of the denoiser, with the noise drawn in the state."""
    key_x, key_noise = jr.split(key)
    x = jr.rademacher(key_x, (20_000,), dtype=jnp.float32)
    noise = jr.normal(key_noise, (len(kernel.mean_map), 20_000))
    z = kernel.project(kernel.perturb(x, noise))
    return jnp.mean((x - denoiser(kernel.log_snr, z)) ** 2)


t = jnp.geomspace(2e-3, 1.0, 200)
figure, (left, right) = plt.subplots(1, 2)
levels = jnp.linspace(-4.0, 4.0, 9)
for (name, other), line, marker in zip(diffusions.items(), lines, markers, strict=True):
    left.plot(t, jax.vmap(other.log_snr)(t), ls=line, label=name)
    errors = []
    for number, level in enumerate(levels):
        own = other.perturbation_kernel(other.time_at_log_snr(level))
        errors.append(denoising_error(own, jr.key(number)))
    right.plot(levels, errors, marker, ms=4, alpha=0.6)
left.set(xscale="log", ylim=(-10, 20), xlabel="diffusion time", ylabel="log-SNR")
left.legend(fontsize=7)
right.set(xlabel="log-SNR", ylabel="denoising error")

# %% [markdown]
# ## What follows
#
# With a denoiser, the bound on the log-likelihood is an integral of that one curve,
#
# $$\log p(x) \ge \text{reconstruction} - \text{prior KL} - \frac12 \int \mathrm{SNR}(\lambda)
# \, \mathrm{E} \| x - \hat x(\lambda, z) \|^2 \mathrm{d}\lambda,$$
#
# so between the same ends in log-SNR it does not depend on the diffusion. Here are the
# bounds of 2,000 draws from a normal law with standard deviation 1, whose average
# log-density is known, under three of the processes.

# %%
interval = eqmdm.LogSNRInterval(-9.0, 13.3)
same_ends = {
    "VPSDE": eqmdm.VPSDE(interval=interval),
    "CLD": eqmdm.CLD(interval=interval),
    "critical": eqmdm.CriticalThirdOrder(interval=interval),
}
normal = eqmdm.DenoiserModel(
    lambda log_snr, z: z / (1 + jnp.exp(-log_snr)), eqmdm.VPSDE(interval=interval)
)
data = jr.normal(jr.key(1), (2000,))
truth = jax.scipy.stats.norm.logpdf(data)
print(f"truth     {float(truth.mean()):8.4f}")
for number, (name, other) in enumerate(same_ends.items()):
    keys = jr.split(jr.key(2 + number), len(data))
    one = lambda x, key: eqmdm.elbo(normal.under(other), x, key=key, n_draws=16).total
    gap = jax.jit(jax.vmap(one))(data, keys) - truth
    value = eqmdm.Estimate.from_mean(np.asarray(gap, dtype=np.float64))
    print(f"{name:9} bound less truth: {value}")
    assert abs(value.value) < 5 * value.standard_error

# %% [markdown]
# `model.under(other)` is the same denoiser under another process: nothing is trained
# again. What *does* depend on the process is how hard a network has to work if it is not a
# denoiser ([Learning a diffusion](learn_a_diffusion.md)), how a solver behaves on the way
# back ([Swapping solvers](solvers.md)), and the ends if they are given in time.
#
# The reduction holds for linear processes whose auxiliary variables start independent of
# the data. [Scores and denoisers](../explanation/score.md) has the short proof.
