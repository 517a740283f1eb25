# %% [markdown]
# # Observations, exact and approximate
#
# You have a model of the data, and you see a part of one example, or a blurred or noisy
# version of it. What are the data? A diffusion model can be conditioned on such an
# observation *after* training. This page does it in three ways on a problem whose answer
# is known, because the approximate way can be badly wrong while its samples look fine.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

import eqmdm


# %% [markdown]
# ## A prior with three modes
#
# The data are points of a mixture of three round normal laws. Its exact denoiser is a
# closed form, so that all errors below are those of the *method*, none of a network. It
# is told the log-SNR of each coordinate, as networks trained with `--snr vector` are.

# %%
weights = jnp.array([0.5, 0.3, 0.2])
means = jnp.array([[-2.0, 1.0], [2.0, -1.0], [1.5, 2.5]])
std = 0.6


def denoiser(log_snr, z):
    """E[x | z] for the mixture, with a noise level for each coordinate."""
    log_snr = jnp.broadcast_to(log_snr, z.shape)
    precision = jnp.exp(log_snr)
    # Where nothing is seen (a precision of 0) the coordinate does not count.
    variance = std**2 + jnp.where(precision > 0, 1 / jnp.maximum(precision, 1e-30), 0)
    gaps = jnp.where(precision > 0, z - means, 0.0)
    seen = jnp.where(precision > 0, jnp.log(variance), 0.0)
    logs = jnp.log(weights) - 0.5 * (gaps**2 / variance + seen).sum(-1)
    gain = jax.nn.sigmoid(log_snr + 2 * jnp.log(std))
    return jax.nn.softmax(logs) @ (means + gain * jnp.where(gain > 0, z - means, 0.0))


model = eqmdm.DenoiserModel(
    eqmdm.VectorDenoiser(denoiser),
    eqmdm.CLD(interval=eqmdm.LogSNRInterval(-9.0, 13.3)),
)

# %% [markdown]
# ## The observation and the truth
#
# Of the two coordinates the first is seen, with noise: $o = x_1 + 0.3 \epsilon$. At
# $o = 0.5$ two modes are plausible, and one all but excluded. By Bayes' rule for mixtures:

# %%
noise_std, value = 0.3, 0.5
observation = eqmdm.LinearObservation(
    eqmdm.observe.mask(jnp.array([True, False])), jnp.array([value]), noise_std
)
predictive = jax.scipy.stats.norm.pdf(value, means[:, 0], jnp.hypot(std, noise_std))
evidence = float(weights @ predictive)
truth = np.asarray(weights * predictive / evidence)
print("weights of the modes:", truth.round(4))
print(f"log p(o) = {np.log(evidence):.4f}")

# %% [markdown]
# ## Exactly
#
# `model.given(observation)` is a model of the data given the observation: sample it with
# any sampler, ask for likelihoods. A mask is diagonal in pixels, so the method is exact.
# The weight of a mode is the mean over samples of its probability given the sample.

# %%


def mode_weights(samples):
    """The weights of the modes among samples of the posterior, with standard errors."""
    gaps = np.asarray(samples)[:, None] - np.asarray(means)
    # Given x the mode is independent of the observation.
    logs = np.log(np.asarray(weights)) - (gaps**2).sum(-1) / (2 * std**2)
    shares = np.exp(logs - np.logaddexp.reduce(logs, axis=1, keepdims=True))
    return shares.mean(0), shares.std(0) / len(shares) ** 0.5


def show(name, samples):
    found, error = mode_weights(samples)
    text = ", ".join(f"{f:.4f} ± {e:.4f}" for f, e in zip(found, error, strict=True))
    print(f"{name:18} {text}")
    return found, error


n = 4000
exact = model.given(observation)
drawn = {"exact": eqmdm.sample(exact, (2,), n_samples=n, key=jr.key(0))}
print(exact.method_name)
found, error = show("exact", drawn["exact"])
print(f"{'truth':18} {', '.join(f'{w:.4f}' for w in truth)}")
assert np.all(np.abs(found - truth) < 5 * error + 0.01)

# %% [markdown]
# ## Approximately
#
# [`eqmdm.MomentMatching`][] takes any linear operator and any denoiser, which is why such
# methods are popular. It replaces the law of the data given the noisy state by a normal one.
# Compare the weights.

# %%
matched = model.given(observation, method=eqmdm.MomentMatching())
drawn["moment matching"] = eqmdm.sample(matched, (2,), n_samples=n, key=jr.key(1))
print(matched.method_name)
wrong, _ = show("moment matching", drawn["moment matching"])
assert abs(wrong[0] - truth[0]) > 5 * error[0]

# %% [markdown]
# ## Corrected
#
# [`eqmdm.TwistedSMC`][] proposes with moment matching and corrects by weights. Its error
# falls with the number of particles, and it estimates the evidence $p(o)$ too.

# %% alt="Samples of the posterior by three methods, over contours of the prior"
result = eqmdm.TwistedSMC(2048, 200)(model, observation, (2,), key=jr.key(2))
drawn["twisted SMC"] = result.draw(n, key=jr.key(3))
show("twisted SMC", drawn["twisted SMC"])
print(f"log p(o) {result.log_evidence:.3f} ± {result.standard_error:.3f}")
assert abs(result.log_evidence - np.log(evidence)) < 5 * result.standard_error

grid = np.stack(np.meshgrid(np.linspace(-4, 4, 80), np.linspace(-3, 5, 80)), -1)
gaps = grid[..., None, :] - np.asarray(means)
density = (np.asarray(weights) * np.exp(-(gaps**2).sum(-1) / (2 * std**2))).sum(-1)
figure, axes = plt.subplots(1, 3, sharex=True, sharey=True, figsize=(7.0, 2.8))
for panel, (name, samples) in zip(axes, drawn.items(), strict=True):
    panel.contour(
        grid[..., 0], grid[..., 1], density, 5, colors="#999999", linewidths=0.6
    )
    panel.scatter(
        *np.asarray(samples).T, s=2, alpha=0.3, color="#0072B2", rasterized=True
    )
    panel.axvline(value, color="#D55E00", lw=1)
    panel.set(title=name, aspect="equal", xlabel="$x_1$")
axes[0].set_ylabel("$x_2$")

# %% [markdown]
# The vertical line is the observation. All three panels look reasonable. Only the numbers
# show that moment matching gives weight to a mode that the observation all but excludes,
# and divides the rest almost equally between two modes that are not equal.
#
# ## The evidence, exactly
#
# For observations of single coordinates, the probability-flow ODE gives $\log p(o)$ itself,
# up to what it costs to start from the prior at a finite log-SNR.

# %%
found = eqmdm.log_evidence(model, observation, key=jr.key(4))
print(
    f"log p(o) by ODE {float(found.log_likelihood):.4f}, truth {np.log(evidence):.4f}"
)
assert abs(found.log_likelihood - np.log(evidence)) < 0.02

# %% [markdown]
# ## Many observations, one program
#
# An observation is a tree of arrays: other values run through the same compiled code,
# and `jax.vmap` batches them. Here is the posterior mean of the unseen coordinate as the
# seen one moves, against the closed form.

# %% alt="Posterior mean of the unseen coordinate against the observation, on the true curve"
operator = eqmdm.observe.mask(jnp.array([True, False]))


@eqx.filter_jit
def posterior_mean(value, key):
    given = model.given(eqmdm.LinearObservation(operator, value[None], noise_std))
    return eqmdm.sample(given, (2,), n_samples=400, key=key)[:, 1].mean()


values = jnp.linspace(-3.5, 3.5, 15)
estimated = jax.vmap(posterior_mean)(values, jr.split(jr.key(5), len(values)))
fine = jnp.linspace(-3.5, 3.5, 200)
predictive = jax.scipy.stats.norm.pdf(
    fine[:, None], means[:, 0], jnp.hypot(std, noise_std)
)
shares = weights * predictive / (weights * predictive).sum(1, keepdims=True)
figure, axes = plt.subplots()
axes.plot(fine, shares @ means[:, 1], label="truth")
axes.plot(values, estimated, "o", ms=4, label="400 samples each")
axes.set(xlabel="observed $x_1$", ylabel="mean of $x_2$")
axes.legend()

# %% [markdown]
# ## On images
#
# ![Test digits, their left halves, and completions by the exact method and by moment
# matching](../benchmarks/results/observations/digits_left_half.png)
#
# Completions of digits whose left half is seen, by a network trained with `--snr vector`.
# The same from the command line:
#
# ```console
# $ eqmdm train --data digits --snr vector --run-dir runs/vector
# $ eqmdm sample runs/vector --observe mask:left-half
# ```
#
# | you observe | exact if the model is one of | otherwise |
# | --- | --- | --- |
# | pixels, with or without noise | pixels ([`eqmdm.PixelBasis`][]) | moment matching, twisted SMC |
# | the whole, with white noise | any basis, any denoiser | |
# | means of blocks | Haar coefficients ([`eqmdm.HaarBasis`][]) | moment matching, twisted SMC |
# | any other linear map | a basis in which it is diagonal | moment matching, twisted SMC |
