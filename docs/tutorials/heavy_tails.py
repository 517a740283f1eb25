# %% [markdown]
# # Heavy tails
#
# If the noise of every example has a random size, it has heavy tails. Do samples then have the
# tails of heavy-tailed data?

# %%
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

import eqmdm


# %% [markdown]
# ## Data with heavy tails
#
# Points in the plane of a multivariate t law with three degrees of freedom: each is a normal
# point divided by the root of a gamma draw, its precision. The quantiles of a coordinate are
# known, so tails can be counted.

# %%
degrees, n = 3.0, 20_000


def student_t(n, seed):
    generator = np.random.default_rng(seed)
    precision = generator.gamma(degrees / 2, 2 / degrees, (n, 1))
    points = generator.standard_normal((n, 2)) / np.sqrt(precision)
    return points.astype(np.float32)


x = student_t(n, 0)
shares = 0.1, 0.01, 0.001
quantiles = [stats.t(degrees).isf(share / 2) for share in shares]
for share, quantile in zip(shares, quantiles, strict=True):
    print(f"{share:6.1%} of the coordinates are beyond ±{quantile:.2f}")

# %% [markdown]
# ## Noise with heavy tails
#
# [`eqmdm.StudentTModel`][] draws a precision $\kappa \sim \mathrm{Gamma}(\nu / 2, \nu / 2)$ for
# every example and divides the variance of its noise by it. Over $\kappa$ the noise has a t law
# with $\nu$ degrees of freedom. The network may be told:
#
# - *shown*: it is told the log-SNR $\log \kappa + \lambda$ of its own example. It then solves
#   the same problem as under normal noise, over a wider range of noise levels;
# - *hidden*: it is told $\lambda$ alone, and has to treat a far point as either data or noise.
#
# Here are both and the normal process, with the same network, data, steps and seed.

# %%
nu = 4.0
diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-9.0, 9.0))
network = eqmdm.nn.MLP((2,), 1, width=64, depth=2, key=jr.key(0))
models = {
    "normal": eqmdm.DenoiserModel.for_data(network, diffusion, x),
    "shown": eqmdm.StudentTModel.for_data(network, diffusion, x, nu),
    "hidden": eqmdm.StudentTModel.for_data(network, diffusion, x, nu, hidden=True),
}


def beyond(samples):
    """The share of coordinates beyond each quantile. Those of one point are dependent."""
    parts = [(np.abs(samples) > q).mean(axis=1) for q in quantiles]
    means = [eqmdm.Estimate.from_mean(part) for part in parts]
    return "  ".join(f"{m.value:7.3%} ± {m.standard_error:.3%}" for m in means)


samples = {}
for name, model in models.items():
    model = eqmdm.fit(
        model,
        x,
        key=jr.key(1),
        steps=400,
        batch_size=256,
        optimiser=eqmdm.make_optimiser(2e-3, warmup=50),
        ema_decay=0.99,
    )
    samples[name] = np.asarray(
        eqmdm.sample(model, (2,), key=jr.key(2), n_samples=10_000)
    )
    print(f"{name:7} {beyond(samples[name])}")

# %% [markdown]
# The shares of the true law are 10 %, 1 % and 0.1 %. A shown precision does nothing for the
# tails: given its precision every sample comes from a process with normal noise, whose network
# has seen few far points. A hidden precision gives samples the tails of the data.
# [Heavy tails](../benchmarks/results/heavy_tails.md) repeats this with two seeds and more steps,
# and has the bounds: that of the hidden precision is the lowest.
#
# ## What a hidden precision must not be trained on
#
# The bound of an example weights its squared error by its signal-to-noise ratio, which is
# $\kappa \, \mathrm{SNR}$. So the network that maximises it is not $\mathrm{E}[x \mid z]$, which
# gives samples the right law, but $\mathrm{E}[\kappa x \mid z] / \mathrm{E}[\kappa \mid z]$. That
# trusts the examples with little noise: it takes a far point for data too often. Training
# therefore counts all precisions alike, and only what is reported is the bound. For these data
# both denoisers can be computed, because given the two precisions everything is normal.

# %%
log_nodes = np.linspace(-12.0, 3.0, 41)


def log_weights(nu):
    """The law of the logarithm of a precision on the nodes, up to a constant."""
    return stats.gamma(nu / 2, scale=2 / nu).logpdf(np.exp(log_nodes)) + log_nodes


def weighted_denoiser(power):
    """E[kappa^power x | z] / E[kappa^power | z], summed over both precisions."""
    of_data, of_noise = np.meshgrid(log_nodes, log_nodes)
    prior = log_weights(degrees)[None, :] + log_weights(nu)[:, None]
    prior = jnp.asarray(prior + power * of_noise, jnp.float32)
    data = jnp.asarray(np.exp(-of_data), jnp.float32)
    relative_noise = jnp.asarray(np.exp(-of_noise) * (nu - 2) / nu, jnp.float32)

    def denoiser(log_snr, z):
        # A hidden precision tells the network the variance of the noise, which is
        # nu / (nu - 2) times the squared scale.
        total = data + relative_noise * jnp.exp(-log_snr)
        logs = prior - 0.5 * z.size * jnp.log(total) - 0.5 * jnp.sum(z**2) / total
        return z * jnp.sum(jax.nn.softmax(logs, axis=None) * data / total)

    return denoiser


closed_forms = {"E[x | z]": 0, "weighted by κ": 1}
for name, power in closed_forms.items():
    normal = eqmdm.DenoiserModel(weighted_denoiser(power), diffusion)
    model = eqmdm.StudentTModel(normal, nu, hidden=True)
    samples[name] = np.asarray(
        eqmdm.sample(model, (2,), key=jr.key(4), n_samples=6000, n_steps=30)
    )
    print(f"{name:13} {beyond(samples[name])}")

# %% alt="Shares of sampled coordinates beyond a distance, for trained and for exact denoisers"
distances = np.geomspace(1, 100, 120)
figure, axes = plt.subplots(1, 2, sharex=True, sharey=True)
panels = {
    "trained networks": ("normal", "shown", "hidden"),
    "closed forms": closed_forms,
}
for panel, (title, names) in zip(axes, panels.items(), strict=True):
    panel.plot(distances, 2 * stats.t(degrees).sf(distances), "k:", label="data")
    for name, line in zip(names, ("-", "--", "-."), strict=False):
        far = np.sort(np.abs(samples[name]).ravel())
        share = 1 - np.searchsorted(far, distances) / len(far)
        seen = share * len(far) > 10
        # At most: the two coordinates of a point may be beyond together.
        error = np.sqrt(2 * share * (1 - share) / len(far))[seen]
        (drawn,) = panel.plot(distances[seen], share[seen], line, label=name)
        panel.fill_between(
            distances[seen],
            share[seen] - error,
            share[seen] + error,
            color=drawn.get_color(),
            alpha=0.2,
        )
    panel.set(title=title, xscale="log", yscale="log", xlabel="distance")
    panel.legend()
axes[0].set(ylabel="share beyond it", ylim=(1e-4, 1))

# %% [markdown]
# So a shown precision widens the range of noise levels at which a denoiser is used, which needs
# no training, and a hidden one gives the outliers of the data. On the command line they are
# `--noise student-t`, and `--hidden-precision` for the second.
#
# The drift stays linear here. [Nonlinear targets](nonlinear_targets.md) changes that too.
