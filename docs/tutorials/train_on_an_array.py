# %% [markdown]
# # Train on your own array
#
# From an array to a trained model, its samples, a measured bound on the likelihood of
# data it has not seen, and files that others can load. All arrays work in the same way:
# points, tables, series, volumes; the first axis counts the examples.

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

import eqmdm


# %% [markdown]
# ## The array
#
# Points from eight small normal laws on a circle stand for your data. Their exact density
# is known, which makes them a good exercise: at the end we can say how far the model is
# from the truth.

# %%
eight = eqmdm.data.load("mixture")
x, held_out = eight.train[:20_000], eight.test[:2000]
print(x.shape, x.dtype, f"standard deviation {x.std():.2f}")

# %% [markdown]
# ## A model, and training
#
# [`eqmdm.nn.MLP`][] is a network on points; any callable of the same arguments would do.
# [`eqmdm.DenoiserModel.for_data`][] scales the network to the data. [`eqmdm.fit`][] trains
# it and returns the model with averaged parameters. Everything that it does is in
# `run_dir`, so that a run that is interrupted goes on where it was.
#
# A callback sees the training as it goes. This one keeps the loss.

# %%
directory = Path(tempfile.mkdtemp())
losses = {}


def keep_loss(event):
    if event.kind == "log":
        losses[event.step] = event.metrics["loss"].mean()


network = eqmdm.nn.MLP((2,), 1, width=64, depth=3, key=jr.key(0))
diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-9.0, 9.0))
model = eqmdm.DenoiserModel.for_data(network, diffusion, x)
model = eqmdm.fit(
    model,
    x,
    key=jr.key(1),
    steps=1500,
    batch_size=256,
    optimiser=eqmdm.make_optimiser(2e-3, warmup=100),
    ema_decay=0.998,
    run_dir=directory / "run",
    callbacks=[keep_loss],
)
first, last = min(losses), max(losses)
print(f"loss at step {first}: {losses[first]:.2f} nats; at {last}: {losses[last]:.2f}")

# %% [markdown]
# ## Samples

# %% alt="Scatter plots of data and of samples: eight spots on a circle in both"
samples = eqmdm.sample(model, (2,), key=jr.key(2), n_samples=2000)
figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.2), sharex=True, sharey=True)
for panel, points, title in zip(
    axes, (held_out, samples), ("data", "samples"), strict=True
):
    panel.scatter(*np.asarray(points).T, s=2, alpha=0.5, rasterized=True)
    panel.set(title=title, aspect="equal")

# %% [markdown]
# How good are they? Distances between sets of samples mean little by themselves. Compare
# with the distance of another set of real data of the same size.

# %%
real = eqmdm.sliced_wasserstein(eight.validation[:2000], held_out, key=jr.key(3))
ours = eqmdm.sliced_wasserstein(samples, held_out, key=jr.key(3))
print(f"sliced Wasserstein distance of samples to data: {ours}")
print(f"of other data to the same data:                 {real}")

# %% [markdown]
# ## A bound on data that it has not seen
#
# [`eqmdm.evaluate`][] estimates the bound for every example and itemises it. The mean is
# over examples and random draws, and so is its standard error.

# %%
evaluation = eqmdm.evaluate(
    model, held_out, eqmdm.Objective(), key=jr.key(4), n_draws=16, batch_size=2000
)
for name, estimate in evaluation.summary().items():
    print(f"{name:15} {estimate} nats")

# %% [markdown]
# The exact log-density of the mixture, averaged over the same points, is above it, as it
# must be; the gap is what the network has not learned, and what it lost by stopping at a
# finite noise level.

# %%
exact = np.asarray(jax.vmap(eight.log_density)(jnp.asarray(held_out)))
gap = eqmdm.Estimate.from_mean(np.asarray(evaluation.terms["total"] - exact, float))
print(
    f"exact {exact.mean():.3f} nats; the bound is {-gap.value:.3f} ± {gap.standard_error:.3f} below"
)
assert gap.value < 4 * gap.standard_error

# %% [markdown]
# ## Keep it, share it
#
# The run holds checkpoints, and [`eqmdm.load_run`][] reads the newest. It needs to know
# the structure of your network, so give it a model of the same structure. Runs of the
# command line record theirs, and need no `like`.

# %%
fresh = eqmdm.nn.MLP((2,), 1, width=64, depth=3, key=jr.key(5))
like = eqmdm.DenoiserModel.for_data(fresh, diffusion, x)
loaded = eqmdm.load_run(directory / "run", like=like)
again = eqmdm.sample(loaded, (2,), key=jr.key(2), n_samples=2000)
print("the same samples:", bool(jnp.all(again == samples)))

# %% [markdown]
# To send it to somebody, write it as safetensors and JSON, with a model card. The card has
# the bound that was measured, if there is one in `run_dir`. Nothing in these files is
# executed when they are loaded. [`eqmdm.load_pretrained`][] also takes `"org/name"`, of the
# Hugging Face Hub.

# %%
eqmdm.save_pretrained(
    model, directory / "shared", run_dir=directory / "run", name="eight"
)
shared = eqmdm.load_pretrained(directory / "shared", like=like)
print(sorted(path.name for path in (directory / "shared").iterdir()))

# %% [markdown]
# ## From the command line
#
# The same for a file, without writing Python: a table, an array (`.npy`, `.npz`), a
# folder of images.
#
# ```console
# $ eqmdm train --data points.npy --steps 1500
# $ eqmdm train --data table.csv --columns a,b
# ```
#
# Points are then standardised, and likelihoods are reported in the units of the file.
#
# ## What you chose without knowing
#
# - **The process.** CLD, with a velocity for every coordinate. With a denoiser the bound
#   depends only on its ends in log-SNR ([why](sufficient_statistic.md)), so try others
#   *after* training: `model.under(eqmdm.VPSDE(interval=diffusion.interval))`.
# - **The kind of model.** [`eqmdm.DenoiserModel`][] estimates the data;
#   [`eqmdm.NoiseModel`][] predicts the noise of every variable, as in the paper, and
#   belongs to one process.
# - **The ends.** A log-SNR of 9 is noise of standard deviation $e^{-9/2} = 0.011$: little
#   beside these spots, but more than a grey level of an image with 256 of them on
#   $[-1, 1]$, which is 0.008 wide. Images have 13.3 by default.
