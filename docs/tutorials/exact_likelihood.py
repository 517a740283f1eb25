# %% [markdown]
# # An exact likelihood to publish
#
# A likelihood in a paper should say of what, by which model, with what error. This page
# trains a small model of 8x8 digits, computes bits per dimension in three ways, shows
# which errors there are and how large each is, and ends with a list of what to report.

# %%
import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

import eqmdm


# %% [markdown]
# ## A model
#
# A perceptron in place of a U-Net, so that it trains in seconds. What matters here is how
# the number is computed, not how small it is.

# %%
digits = eqmdm.data.load("digits")
network = eqmdm.nn.MLP(digits.shape, 1, width=96, depth=2, key=jr.key(0))
diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-9.0, 13.3))
model = eqmdm.DenoiserModel.for_data(network, diffusion, digits)
model = eqmdm.fit(
    model,
    digits,
    key=jr.key(1),
    steps=400,
    batch_size=128,
    optimiser=eqmdm.make_optimiser(1e-3, warmup=100),
    ema_decay=0.995,
    validate_every=400,
)
print(f"{len(digits.train)} training images, {digits.n_levels} grey levels")

# %% [markdown]
# ## From levels to densities and back
#
# Pixels are integers, and a density of integers is meaningless. [`eqmdm.GreyLevels`][]
# adds uniform noise within each level and scales; what it returns beside the data is the
# correction that turns a log-density into a bound on the log-probability of the levels,
#
# $$\log P(\text{levels}) \ge \mathrm{E} [\log p(x)] + \text{correction}.$$

# %%
levels = eqmdm.GreyLevels(digits.n_levels)
images = jnp.asarray(digits.test[:6])
keys = jr.split(jr.key(2), len(images))
x, correction = jax.vmap(lambda image, key: levels.encode(image, key=key))(images, keys)
n_dims = x[0].size


def bits(log_density):
    """Bits per dimension of each image, and their mean with its standard error."""
    each = eqmdm.bits_per_dim(log_density + correction, n_dims=n_dims)
    each = np.asarray(each, np.float64)
    return each, eqmdm.Estimate.from_mean(each)


# %% [markdown]
# ## Exact
#
# The probability-flow ODE carries the data to the prior and adds up how much it stretches.
# With the exact divergence nothing is random.


# %%
@eqx.filter_jit
def exact(x, key, tolerance=1e-5):
    return eqmdm.log_likelihood(
        model,
        x,
        key=key,
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
    )


solved = jax.vmap(exact)(x, keys)
exact_bits, mean = bits(solved.log_likelihood)
print(solved)
print(
    f"exact: {mean} bits per dimension; all converged: {bool(solved.converged.all())}"
)

# %% [markdown]
# Three errors remain, and each can be measured.
#
# **The tolerance of the solver.** Solve again with ten times the tolerance; the error at the
# default should be smaller than the change. A tolerance below the precision of float32 is
# refused.

# %%
looser = jax.vmap(lambda x, key: exact(x, key, 1e-4))(x, keys)
looser_bits, _ = bits(looser.log_likelihood)
change = np.abs(looser_bits - exact_bits)
print(f"largest change of an image: {change.max():.1e} bits per dimension")
assert change.max() < mean.standard_error

# %% [markdown]
# **The noise of the dequantisation.** The number is for one draw of the uniform noise.
# Draw again:

# %%
keys_again = jr.split(jr.key(3), len(images))
x_again, correction_again = jax.vmap(lambda image, key: levels.encode(image, key=key))(
    images, keys_again
)
solved_again = jax.vmap(lambda x, key: exact(x, key, 1e-4))(x_again, keys_again)
again = eqmdm.bits_per_dim(
    solved_again.log_likelihood + correction_again, n_dims=n_dims
)
difference = eqmdm.Estimate.from_mean(np.asarray(again, np.float64) - looser_bits)
print(f"another draw of the noise: {difference}")

# %% [markdown]
# **The examples.** These are 6 images of a larger world: the standard error above. It is
# by far the largest of the three, so spend your time on more images, not on tolerances.
#
# ## The bound
#
# The bound needs no ODE. It is an estimate, itemised, and by the variational argument below
# the log-likelihood of the *SDE's* model, which is not that of the ODE unless the denoiser
# is exact. Report which one it is.

# %%
evaluation = eqmdm.evaluate(
    model,
    images,
    eqmdm.Objective(levels=levels),
    key=jr.key(4),
    n_draws=64,
    batch_size=512,
)
bound_bits = evaluation.terms["bits_per_dim"]
print(f"bound: {eqmdm.Estimate.from_mean(bound_bits)} bits per dimension")
paired = eqmdm.Estimate.from_mean(bound_bits - exact_bits)
print(f"bound less exact, image by image: {paired}")

# %% [markdown]
# The difference image by image is more precise than either mean, because hard images are
# hard for both.
#
# ## Hutchinson's estimate
#
# The exact divergence takes one derivative for each pixel. Hutchinson's takes one for each
# random probe, and is unbiased in nats. It brings noise, which the result reports if there
# are several probes.

# %% alt="Hutchinson's bits per dimension against exact ones for 6 images, with error bars"
probed = jax.vmap(
    lambda x, key: eqmdm.log_likelihood(
        model, x, key=key, divergence=eqmdm.HutchinsonDivergence(8)
    )
)(x, keys)
probed_bits, probed_mean = bits(probed.log_likelihood)
error = np.asarray(probed.standard_error) / (n_dims * np.log(2))
print(f"8 probes: {probed_mean} bits per dimension")
print(
    f"error of one image: reported {error.mean():.4f}, seen "
    f"{np.std(probed_bits - exact_bits):.4f}"
)
figure, axes = plt.subplots(figsize=(3.6, 3.2))
axes.errorbar(exact_bits, probed_bits, error, fmt="o", ms=3, lw=1)
ends = [exact_bits.min(), exact_bits.max()]
axes.plot(ends, ends, color="#999999", lw=1)
axes.set(xlabel="exact", ylabel="8 probes", title="bits per dimension")

# %% [markdown]
# ## What to report
#
# | item | here |
# | --- | --- |
# | data, split, number of examples | scikit-learn's digits, test, the first 6 |
# | grey levels | 17: not comparable with 256 |
# | dequantisation | uniform, one draw |
# | quantity | probability-flow ODE, exact divergence; or the bound of the SDE, 64 draws |
# | ends | log-SNR from -9 to 13.3 |
# | solver and tolerance | Tsit5, 1e-5 |
# | standard error, and of what | over examples |
# | failed solves | none |
#
# The programs write this list themselves, in `report.txt` and `report.json`, with versions,
# device and fingerprints of data and parameters:
#
# ```console
# $ eqmdm evaluate runs/demo --examples 64 --route all --format csv,latex
# ```
#
# [Bits per dimension that compare with papers](../how-to/bits_per_dim.md) says what must be
# equal before two numbers may be compared, and [Routes to
# likelihoods](../benchmarks/results/likelihood_routes_digits.md) has the three quantities for
# the demo's model.
