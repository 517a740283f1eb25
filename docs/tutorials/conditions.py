# %% [markdown]
# # Conditions and guidance
#
# A *condition* is what you know before you look at the data: a class, some numbers, an
# image. This page trains on classes and on a number, checks both against closed forms,
# guides samples, and turns a model into a classifier.

# %%
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

import eqmdm


# %% [markdown]
# ## Classes
#
# Three classes of points, which overlap, so that the class of a point is uncertain and
# Bayes' rule says by how much.

# %%
n, std = 15_000, 0.5
means = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.2]], np.float32)
labels = np.arange(n) % 3
x = means[labels] + std * np.asarray(jr.normal(jr.key(0), (n, 2)))


def true_log_probabilities(x):
    """log p(class | x) by Bayes' rule, for equal classes."""
    logits = -jnp.sum((x[..., None, :] - means) ** 2, -1) / (2 * std**2)
    return jax.nn.log_softmax(logits)


kind = eqmdm.nn.condition_for(labels)
network = eqmdm.nn.MLP((2,), 1, width=64, depth=3, condition=kind, key=jr.key(1))
diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-9.0, 9.0))
model = eqmdm.DenoiserModel.for_data(network, diffusion, x)
model = eqmdm.fit(
    model,
    x,
    condition=labels,
    drop_condition=0.1,
    key=jr.key(2),
    steps=1000,
    batch_size=256,
    optimiser=eqmdm.make_optimiser(2e-3, warmup=100),
    ema_decay=0.998,
)
print(kind)

# %% [markdown]
# `drop_condition` leaves the class out for one example in ten, so the network also learns
# the data without it. Guidance needs both.
#
# Samples of a class should be the normal law of that class:

# %%
for label in range(3):
    drawn = eqmdm.sample(model, (2,), condition=label, n_samples=2000, key=jr.key(3))
    mean, error = drawn.mean(0), std / 2000**0.5
    print(
        f"class {label}: mean ({mean[0]:+.3f}, {mean[1]:+.3f}) ± {error:.3f}, "
        f"true ({means[label, 0]:+.1f}, {means[label, 1]:+.1f}); "
        f"standard deviation {float(drawn.std(0).mean()):.3f}, true {std}"
    )

# %% [markdown]
# Differences beyond the standard errors are the network's: it has seen 15,000 points for
# 1,000 steps.
#
# ## Guidance
#
# [`eqmdm.GuidedModel`][] exaggerates the difference that the condition makes. With a scale
# $w$ the score is
#
# $$s(y \mid c) + (w - 1) \, (s(y \mid c) - s(y \mid \varnothing)).$$
#
# It is a model like any other. Look at what it does: the samples move to where the class
# is certain, and beyond where its data are.

# %% alt="Samples of class 2 at guidance scales 1, 2 and 4, which move upwards and contract"
scales = (1.0, 2.0, 4.0)
figure, axes = plt.subplots(1, 3, sharex=True, sharey=True, figsize=(7.0, 2.7))
for panel, scale in zip(axes, scales, strict=True):
    guided = eqmdm.GuidedModel(model, scale)
    drawn = eqmdm.sample(guided, (2,), condition=2, n_samples=2000, key=jr.key(4))
    panel.scatter(*x[labels != 2][:1000].T, s=1, color="#999999", rasterized=True)
    panel.scatter(*drawn.T, s=2, alpha=0.5, color="#D55E00", rasterized=True)
    panel.set(title=f"scale {scale:g}", xlim=(-3, 3), ylim=(-2.5, 4), aspect="equal")
    certain = np.exp(np.asarray(true_log_probabilities(drawn))[:, 2])
    mean = eqmdm.Estimate.from_mean(certain.astype(float))
    spread = float(drawn.std(0).mean())
    print(f"scale {scale:g}: p(class | sample) {mean}, standard deviation {spread:.3f}")

# %% [markdown]
# The class is recognised more often, and the spread is lost: a guided model's samples are
# not those of the data. Report guided results as what they are.
#
# ## A classifier
#
# $p(c \mid x) \propto p(x \mid c) \, p(c)$. With the bound in place of $\log p(x \mid c)$,
# and the same random draws for all classes, most of the noise cancels.

# %% alt="Estimated against true probability of class 2 for 200 points, along the diagonal"
points = x[-200:]
keys = jr.split(jr.key(5), len(points))
one = lambda x, key: eqmdm.class_log_probabilities(model, x, 3, key=key, n_draws=16)
estimated = np.exp(np.asarray(jax.vmap(one)(jnp.asarray(points), keys)))
true = np.exp(np.asarray(true_log_probabilities(points)))
figure, axes = plt.subplots(figsize=(3.4, 3.2))
axes.plot([0, 1], [0, 1], color="#999999", lw=1)
axes.plot(true[:, 2], estimated[:, 2], "o", ms=3, alpha=0.6)
axes.set(xlabel="true p(class 2 | x)", ylabel="estimated", aspect="equal")
agree = np.mean(estimated.argmax(1) == true.argmax(1))
right = np.mean(estimated.argmax(1) == labels[-200:])
best = np.mean(true.argmax(1) == labels[-200:])
print(f"same class as Bayes' rule for {agree:.0%} of {len(points)} points")
print(f"right for {right:.0%}; Bayes' rule, the best possible, for {best:.0%}")
assert agree > 0.9

# %% [markdown]
# ## Numbers as conditions
#
# A condition may be a vector, such as the parameters or the outputs of a simulator. Below
# is the inverse problem of simulation-based inference: given an output $c$, draw the
# parameters $x$. With a normal prior and $c = x_1 + x_2 + 0.5 \epsilon$ the posterior is
# normal, and its mean and covariance are known.

# %%
x = np.asarray(jr.normal(jr.key(6), (20_000, 2)))
c = x.sum(1, keepdims=True) + 0.5 * np.asarray(jr.normal(jr.key(7), (20_000, 1)))
kind = eqmdm.nn.condition_for(c)
network = eqmdm.nn.MLP((2,), 1, width=64, depth=3, condition=kind, key=jr.key(8))
posterior = eqmdm.DenoiserModel.for_data(network, diffusion, x)
posterior = eqmdm.fit(
    posterior,
    x,
    condition=c,
    key=jr.key(9),
    steps=1000,
    batch_size=256,
    optimiser=eqmdm.make_optimiser(2e-3, warmup=100),
    ema_decay=0.998,
)
n_samples = 2000
gain = 1 / (2 + 0.5**2)
for value in (-1.5, 0.0, 2.0):
    condition = jnp.asarray([value])
    drawn = eqmdm.sample(
        posterior, (2,), condition=condition, n_samples=n_samples, key=jr.key(10)
    )
    mean = eqmdm.Estimate.from_mean(np.asarray(drawn[:, 0], float))
    correlation = np.corrcoef(np.asarray(drawn).T)[0, 1]
    print(
        f"c = {value:+.1f}: mean {mean}, true {gain * value:+.3f}; "
        f"correlation {correlation:+.3f}, true {-gain / (1 - gain):+.3f}"
    )

# %% [markdown]
# An entry that is missing is NaN, and a class that is missing is -1, so that one model
# serves conditions that are known in part. `eqmdm.log_likelihood(posterior, x,
# condition=c, key=key)` gives the posterior's density, not only its samples.
#
# ## From the command line
#
# ```console
# $ eqmdm train --data digits --condition label --run-dir runs/digits-label
# $ eqmdm sample runs/digits-label --condition 3 --guidance 1.5
# $ eqmdm evaluate runs/digits-label --route elbo --classify
# ```
#
# [What conditions do on digits](../benchmarks/results/conditions_digits.md) was measured
# in this way. If the condition is a *part of the data*, such as half of an image, no
# conditional training is needed: see [Observations](observations.md).
