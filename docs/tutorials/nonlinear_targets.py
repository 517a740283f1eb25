# %% [markdown]
# # Nonlinear targets
#
# A linear drift gives a process kernels in closed form, and a normal law at its end. This page
# gives that up: the drift is that of a logistic law or of a double well, or your own, and states
# are simulated.

# %%
from typing import final

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

import eqmdm


# %% [markdown]
# ## A process that ends in a given law
#
# For skew-symmetric $Q$ and positive semidefinite $D$,
#
# $$\mathrm{d}y = \beta(t) (Q + D) \nabla \log \pi(y) \, \mathrm{d}t + \sqrt{2 \beta(t) D} \,
# \mathrm{d}w$$
#
# has $\pi$ as its stationary law, whatever $\pi$ is. [`eqmdm.TargetDiffusion`][] takes $Q$, $D$
# and a product law over the data coordinates, and uses it as the prior too.
# [`eqmdm.simulate_path`][] runs it forward from data, here from 5,000 coordinates at -1 and as many at 1.

# %% alt="Paths from -1 and 1, which mix under a logistic law and cross the barrier of a double well"
logistic = eqmdm.TargetDiffusion([[0.0]], [[1.0]], eqmdm.LogisticTarget())
double_well = eqmdm.TargetDiffusion(
    [[0.0]],
    [[1.0]],
    eqmdm.DoubleWellTarget(mode=1.0, barrier=2.0),
    simulation=eqmdm.Simulation(256),
)
starts = jnp.repeat(jnp.array([-1.0, 1.0]), 5000)


def simulated(name, process):
    times, states = eqmdm.simulate_path(process, starts, key=jr.key(5))
    stayed = np.asarray(states[-1, 0] * starts > 0, float)
    share = eqmdm.Estimate.from_mean(stayed)
    print(f"{name:17} on the side of its start at t = 1: {share.value:.1%}", end=" ")
    print(f"± {share.standard_error:.1%}")
    return times, states[:, 0]


figure, axes = plt.subplots(1, 2, sharey=True)
processes = {"logistic": logistic, "double well": double_well}
for panel, (name, process) in zip(axes, processes.items(), strict=True):
    times, paths = simulated(name, process)
    panel.plot(times, paths[:, :8], color="#0072B2", lw=0.6)
    panel.plot(times, paths[:, -8:], color="#D55E00", lw=0.6)
    panel.set(title=name, xlabel="diffusion time", ylim=(-3, 3))

# %% [markdown]
# The laws are symmetric, so half of the coordinates should be on either side. Those of the double well
# remember where they started, because its barrier is crossed too seldom. Such a process does not end
# in its prior, which no training can mend. A schedule with a higher rate can:

# %%
fast = eqmdm.TargetDiffusion(
    [[0.0]],
    [[1.0]],
    eqmdm.DoubleWellTarget(mode=1.0, barrier=2.0),
    schedule=eqmdm.LinearSchedule(0.1, 30.0),
    simulation=eqmdm.Simulation(512),
)
simulated("faster", fast)

# %% [markdown]
# It needs more steps of simulation, since each is longer in terms of the drift. Steps that are too
# long for the drift are either found, when a path diverges, or leave a bias; so double them and
# compare.

# %% raises=FloatingPointError
coarse = eqmdm.TargetDiffusion(
    [[0.0]],
    [[1.0]],
    eqmdm.DoubleWellTarget(mode=1.0, barrier=2.0),
    schedule=eqmdm.LinearSchedule(0.1, 30.0),
    simulation=eqmdm.Simulation(32),
)
eqmdm.simulate_path(coarse, starts, key=jr.key(5))

# %% [markdown]
# ## What needs kernels refuses
#
# These processes have no kernels, no $z$ and no log-SNR. Whatever relies on them says so, and
# names what does not have them.

# %% raises=TypeError
logistic.perturbation_kernel(jnp.asarray(0.5))

# %% raises=TypeError
eqmdm.DenoiserModel(lambda log_snr, z: z, logistic)

# %% [markdown]
# What is left is what needs a drift and a score: two forms of the bound, sampling with any Diffrax
# solver that suits an SDE or ODE, and the likelihood by the augmented route.
#
# ## A check: the normal target
#
# With a normal law as its target the process is linear, so that everything that is simulated can
# be held against what is known. The data are normal with variance 1.5, the score is exact, and
# $\pi$ has variance 1.3.

# %%
matrices = [[0.0]], [[1.0]]
interval = eqmdm.TimeInterval(0.02, 1.0)
linear = eqmdm.LinearDiffusion(
    *matrices, stationary_covariance=[[1.3]], interval=interval
)
nonlinear = eqmdm.TargetDiffusion(
    *matrices,
    eqmdm.GaussianMixtureTarget([1.0], [[0.0]], [[[1.3]]]),
    interval=interval,
)


def score(t, y):
    kernel = linear.compute_kernel(t)
    return -y / (1.5 * kernel.mean_map[0] ** 2 + kernel.root[0, 0] ** 2)


data = 1.5**0.5 * jr.normal(jr.key(7), (1000, 1))
log_p = stats.norm(scale=1.5**0.5).logpdf(data).sum(axis=1)
forms = {
    "local": eqmdm.LocalScoreMatching(),
    "implicit": eqmdm.ImplicitScoreMatching(),
}
model = eqmdm.FunctionModel(score, nonlinear)
for name, form in forms.items():
    one = lambda x, key: eqmdm.elbo(model, x, key=key, n_draws=8, form=form).total
    bounds = jax.jit(jax.vmap(one))(data, jr.split(jr.key(8), len(data)))
    gap = eqmdm.Estimate.from_mean(np.asarray(bounds, np.float64) - log_p)
    print(f"{name:8} bound less log p(x): {gap} nats")
    assert abs(gap.value) < 5 * gap.standard_error

# %% [markdown]
# [`eqmdm.LocalScoreMatching`][], the default here, needs no derivative of the score: it takes the
# last short step as a linear one, whose law is known. [`eqmdm.ImplicitScoreMatching`][] takes a
# divergence instead. Its error is smaller here because this score is close to that of the prior,
# and both forms look only at the difference.
#
# Samples and likelihoods need a drift and a score:

# %%
for process in (linear, nonlinear):
    model = eqmdm.FunctionModel(score, process)
    drawn = eqmdm.sample(
        model, (1,), key=jr.key(9), n_samples=4000, sampler=diffrax.ShARK()
    )
    variance = eqmdm.Estimate.from_mean(np.asarray(drawn[:, 0], float) ** 2)
    found = eqmdm.log_likelihood(
        model, data[0], key=jr.key(10), route=eqmdm.AugmentedRoute()
    )
    print(f"variance {variance}, log-likelihood {float(found.log_likelihood):.5f}")
    assert abs(variance.value - 1.5) < 5 * variance.standard_error
print(f"truth:   1.5,               {log_p[0]:.5f}")

# %% [markdown]
# The likelihoods are equal. They differ from the truth by the noise at $t_0 = 0.02$, as those of
# every process do.
#
# ## Train under a logistic process
#
# Training needs nothing new: the form of the bound is chosen by the process. A
# [`eqmdm.NoiseModel`][] predicts noise on the scale of a linear *reference* process of about the
# same noise; neither the law of the states nor the bound depends on it in expectation. The data are
# points in the plane of a multivariate t law with three degrees of freedom, as in [Heavy
# tails](heavy_tails.md), whose tails are known. Beside the logistic process is VPSDE, with the
# same network.

# %%
degrees, n = 3.0, 20_000


def student_t(n, seed):
    generator = np.random.default_rng(seed)
    precision = generator.gamma(degrees / 2, 2 / degrees, (n, 1))
    points = generator.standard_normal((n, 2)) / np.sqrt(precision)
    return points.astype(np.float32)


def beyond(samples):
    """The shares of coordinates beyond quantiles. Those of one point are dependent."""
    quantiles = [stats.t(degrees).isf(share / 2) for share in (0.1, 0.01, 0.001)]
    parts = [(np.abs(samples) > q).mean(axis=1) for q in quantiles]
    means = [eqmdm.Estimate.from_mean(part) for part in parts]
    return "  ".join(f"{m.value:7.3%} ± {m.standard_error:.3%}" for m in means)


x, held_out = student_t(n, 0), student_t(500, 1)
exact = stats.multivariate_t([0, 0], np.eye(2), df=degrees).logpdf(held_out)
network = eqmdm.nn.MLP((2,), 1, width=64, depth=2, key=jr.key(0))
noise_models = {
    "VPSDE": eqmdm.VPSDE(),
    "logistic": eqmdm.TargetDiffusion([[0.0]], [[0.5]], eqmdm.LogisticTarget()),
}
for name, process in noise_models.items():
    model = eqmdm.fit(
        eqmdm.NoiseModel(network, process),
        x,
        key=jr.key(11),
        steps=400,
        batch_size=256,
        optimiser=eqmdm.make_optimiser(2e-3, warmup=50),
        ema_decay=0.99,
    )
    drawn = eqmdm.sample(
        model,
        (2,),
        key=jr.key(12),
        n_samples=10_000,
        sampler=diffrax.ShARK(),
        n_steps=60,
    )
    bound = eqmdm.evaluate(
        model,
        held_out,
        eqmdm.Objective(),
        key=jr.key(13),
        n_draws=16,
        batch_size=4000,
    ).terms["total"]
    print(f"{name:8} {beyond(drawn)}")
    gap = eqmdm.Estimate.from_mean(bound - exact)
    print(f"         bound less log p(x): {gap} nats")

# %% [markdown]
# The shares of the true law are 10 %, 1 % and 0.1 %. The process is not all that decides about
# tails. VPSDE is the normal process of [Heavy tails](heavy_tails.md), with a network that predicts
# noise instead of data and a solver of the SDE, and its samples reach further than there. After the
# same steps those of the logistic process are further from the data. One seed ranks nothing, but
# this is how to compare processes: the same points, and standard errors.
#
# ## A drift of your own
#
# Subclass [`eqmdm.AbstractNonlinearDiffusion`][]: a drift, a noise matrix, a prior and a linear
# reference. Below, the pull towards the origin is never stronger than the rate. This one has a
# stationary law that is known, $\operatorname{sech}^2$, so it can be checked: it is the
# [`eqmdm.TargetDiffusion`][] of the logistic law with scale 1/2.


# %%
@final
class Saturating(eqmdm.AbstractNonlinearDiffusion):
    """A pull towards the origin that does not grow with the distance from it."""

    reference: eqmdm.AbstractLinearDiffusion = eqmdm.VPSDE()
    prior: eqmdm.AbstractLaw = eqmdm.LogisticTarget(0.5)
    simulation: eqmdm.Simulation = eqmdm.Simulation()

    def drift(self, t, y, args=None):
        return -self._rate(t) * jnp.tanh(y)

    def diffusion_matrix(self, t):
        return jnp.sqrt(self._rate(t)) * jnp.ones((1, 1), t.dtype)

    def _rate(self, t):
        return 0.1 + 9.9 * t


saturating = Saturating()
same = eqmdm.TargetDiffusion([[0.0]], [[0.5]], eqmdm.LogisticTarget(0.5))
t, y = jnp.asarray(0.3), jr.normal(jr.key(16), (1, 1000))
difference = jnp.abs(saturating.drift(t, y) - same.drift(t, y)).max()
print(f"drift, largest difference: {float(difference):.1e}")
assert difference < 1e-5
score_at_prior = eqmdm.FunctionModel(lambda t, y: -2 * jnp.tanh(y), saturating)
drawn = eqmdm.sample(score_at_prior, (1,), key=jr.key(17), n_samples=4000)
variance = eqmdm.Estimate.from_mean(np.asarray(drawn[:, 0], np.float64) ** 2)
print(f"variance of samples of the stationary law: {variance}")
print(f"closed form: {np.pi**2 / 12:.4f}")
assert abs(variance.value - np.pi**2 / 12) < 5 * variance.standard_error

# %% [markdown]
# If your drift has no law to which it tends, the prior may be any law close to that of the states
# at the end; how close is a part of the bound.
#
# ## Further
#
# - Several variables: `eqmdm.ProductTarget` makes a target of the laws of the data and of the
#   auxiliaries, and $Q$ couples them.
# - [The bound](../explanation/bound.md#processes-without-kernels) says what is simulated and what it
#   costs.
# - [Processes with other drifts](../reference/nonlinear.md) lists all names.
