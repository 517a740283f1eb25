# %% [markdown]
# # Learning a diffusion
#
# The matrices of a process may be parameters, trained with the network on the same bound.
# This page trains them, looks at what came out, and asks what it gained, against fixed
# processes at equal cost. The answer depends on the kind of model, for a reason that can
# be checked.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np

import eqmdm


# %% [markdown]
# ## Every parameter value is a valid process
#
# [`eqmdm.LearnedDiffusion`][] has $Q = q - q^\top$ and $D = B B^\top$ with free $q$ and
# $B$, so whatever training does, the process stays one that ends in its prior.

# %%
learned = eqmdm.LearnedDiffusion(2, key=jr.key(0))
print("Q =", np.asarray(learned.skew_matrix).round(3).tolist())
print("D =", np.asarray(learned.dissipation_matrix).round(3).tolist())

# %% [markdown]
# ## Free scores
#
# With a [`eqmdm.NoiseModel`][] the network sees all variables and predicts the noise of each,
# as in the paper. How hard that is depends on the process, so there is something to learn.
# Three processes, the same network, data, steps and seed; the matrices get a learning rate
# of their own.

# %%
data = eqmdm.data.load("mixture")
x, held_out = data.train[:20_000], data.test[:500]
optimiser = eqmdm.make_optimiser(2e-3, diffusion_learning_rate=1e-2, warmup=100)
path = []


def keep_matrices(event):
    if event.kind == "log" and isinstance(event.state.model.diffusion, type(learned)):
        own = event.state.model.diffusion
        entries = own.skew_matrix[1, 0], *jnp.diag(own.dissipation_matrix)
        path.append([event.step, *map(float, entries)])


def trained(diffusion):
    network = eqmdm.nn.MLP((2,), diffusion.n_vars, width=64, depth=3, key=jr.key(1))
    return eqmdm.fit(
        eqmdm.NoiseModel(network, diffusion),
        x,
        key=jr.key(2),
        steps=1200,
        batch_size=256,
        optimiser=optimiser,
        ema_decay=0.998,
        callbacks=[keep_matrices],
    )


models, bounds = {}, {}
for name, diffusion in {
    "VPSDE": eqmdm.VPSDE(),
    "CLD": eqmdm.CLD(),
    "learned": learned,
}.items():
    models[name] = trained(diffusion)
    evaluation = eqmdm.evaluate(
        models[name],
        held_out,
        eqmdm.Objective(),
        key=jr.key(3),
        n_draws=32,
        batch_size=4000,
    )
    bounds[name] = np.asarray(evaluation.terms["total"], np.float64)
    print(f"{name:8} bound {eqmdm.Estimate.from_mean(bounds[name])} nats")
for name in ("VPSDE", "CLD"):
    gain = eqmdm.Estimate.from_mean(bounds["learned"] - bounds[name])
    print(f"learned less {name}, point by point: {gain}")
exact = np.asarray(jax.vmap(data.log_density)(jnp.asarray(held_out)), np.float64)
print(f"the exact log-density of the data: {eqmdm.Estimate.from_mean(exact)}")

# %% [markdown]
# One seed shows what happens, not what is typical. [The study](../benchmarks/RESULTS.md)
# repeats this on digits with three seeds, and finds the learned process between CLD and
# VPSDE.
#
# ## What was learned

# %% alt="The coupling and the two dissipations of the learned process over training steps"
steps, coupling, of_data, of_auxiliary = np.array(path).T
figure, axes = plt.subplots()
axes.plot(steps, coupling, "-", label="coupling in $Q$")
axes.plot(steps, of_data, "--", label="$D$ of the data")
axes.plot(steps, of_auxiliary, "-.", label="$D$ of the auxiliary")
axes.set(xlabel="step", ylabel="entry")
axes.legend()
final = models["learned"].diffusion
print("Q =", np.asarray(final.skew_matrix).round(3).tolist())
print("D =", np.asarray(final.dissipation_matrix).round(3).tolist())
for name, model in models.items():
    own = model.diffusion
    ends = own.log_snr(own.t0), own.log_snr(own.t1)
    print(f"{name:8} log-SNR from {float(ends[0]):.1f} to {float(ends[1]):.1f}")

# %% [markdown]
# The last lines are the important ones. Between fixed *times* the matrices decide the noise
# levels at the two ends, and so how much of the data has to be modelled. Much of what is
# learned is the ends.
#
# ## With a denoiser there is nothing left to learn
#
# If the network is a denoiser and the ends are fixed in log-SNR, the bound does not depend
# on the matrices ([why](sufficient_statistic.md)). Its gradient with respect to them should
# be zero, within its standard error, for *any* denoiser, even a bad one. Here is the
# gradient for the untrained one, per entry of $q$ and $B$.

# %%
fixed_ends = eqmdm.LearnedDiffusion(
    2, key=jr.key(0), interval=eqmdm.LogSNRInterval(-9.0, 9.0)
)
network = eqmdm.nn.MLP((2,), 1, width=32, depth=2, key=jr.key(4))
model = eqmdm.DenoiserModel.for_data(network, fixed_ends, x)
points = jnp.asarray(held_out[:256])


@eqx.filter_jit
def gradients(model, points, keys):
    trained, rest = eqx.partition(model.diffusion, eqx.is_inexact_array)

    def bound(trained, x, key):
        under = model.under(eqx.combine(trained, rest))
        terms = eqmdm.elbo(under, x, key=key, n_draws=8)
        return terms.reconstruction + terms.diffusion

    gradient = jax.vmap(jax.grad(bound), (None, 0, 0))(trained, points, keys)
    return jnp.concatenate(
        [leaf.reshape(len(points), -1) for leaf in jax.tree.leaves(gradient)], axis=1
    )


found = np.asarray(gradients(model, points, jr.split(jr.key(5), len(points))), float)
error = found.std(0) / len(found) ** 0.5
entries = np.stack([found.mean(0), error], axis=1)
for value, own in entries:
    print(f"{value:+.4f} ± {own:.4f} nats per unit")
moved = error > 0
assert np.all(np.abs(found.mean(0)[moved]) < 5 * error[moved])

# %% [markdown]
# So learn a process when the score is free, or when the ends are to be learned; with a
# denoiser choose the ends, and any process that your solver likes. [The gain from learning
# the diffusion](../benchmarks/RESULTS.md) has the measurements behind this.
#
# ## From the command line
#
# ```console
# $ eqmdm train --data digits --diffusion learned --n-vars 3 --score free
# ```
