"""Kernels in 60-digit arithmetic, which tests and the kernel benchmark compare with."""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

import eqmdm


DIGITS = 60
# Exact in float32, so that one reference serves both precisions.
TAUS = tuple(
    float(np.float32(tau)) for tau in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 5.0, 20.0)
)


def exact_kernel(skew, dissipation_root, stationary_root, start_root, tau):
    """Psi and the Cholesky factor of Sigma at `tau`, as mpmath matrices.

    Sigma = S - Psi (S - S0) Psi^T cancels down to tau^(2K - 1); 60 digits leave at
    least 20 of them for four variables at 1e-5.
    """
    with mp.workdps(DIGITS):
        Q, R, Ls, L0 = (
            mp.matrix(np.asarray(matrix, float).tolist())
            for matrix in (skew, dissipation_root, stationary_root, start_root)
        )
        S = Ls * Ls.T
        F = -(Q + R * R.T) * mp.inverse(S)
        psi = mp.expm(F * mp.mpf(float(tau)))
        return psi, mp.cholesky(S - psi * (S - L0 * L0.T) * psi.T)


def errors(transition_mean, root, exact_mean, exact_root):
    """Errors as the accuracy of kernels is stated: of the diagonal of the root relative
    to itself, of its entries relative to their row, of the mean map relative to its
    largest entry; the largest of each."""
    n_vars = len(root)
    with mp.workdps(DIGITS):
        row = lambda i: mp.norm(exact_root[i, :])
        gap = lambda i, j: abs(mp.mpf(float(root[i, j])) - exact_root[i, j])
        diagonal = max(gap(i, i) / exact_root[i, i] for i in range(n_vars))
        rows = max(gap(i, j) / row(i) for i in range(n_vars) for j in range(n_vars))
        entries = [(i, j) for i in range(n_vars) for j in range(exact_mean.cols)]
        largest = max(abs(exact_mean[i, j]) for i, j in entries)
        mean = max(
            abs(mp.mpf(float(transition_mean[i, j])) - exact_mean[i, j])
            for i, j in entries
        )
        return float(diagonal), float(rows), float(mean / largest)


# The classes of the named stationary diffusions.
STATIONARY = {
    "VPSDE": eqmdm.VPSDE,
    "CLD": eqmdm.CLD,
    "PSLD": eqmdm.PSLD,
    "ALDA": eqmdm.ALDA,
    "MALDA": eqmdm.MALDA,
    "CriticalThirdOrder": eqmdm.CriticalThirdOrder,
}


def named_diffusions(**options):
    """Every named stationary diffusion, by name."""
    return {
        "VPSDE": eqmdm.VPSDE(**options),
        "CLD": eqmdm.CLD(**options),
        "CLD-authors": eqmdm.CLD(mass=0.25, friction=1.0, **options),
        "ALDA": eqmdm.ALDA(**options),
        "MALDA": eqmdm.MALDA(**options),
        "PSLD": eqmdm.PSLD(**options),
        "CriticalThirdOrder": eqmdm.CriticalThirdOrder(**options),
    }


@functools.cache
def random_recipes(n_vars, *, n=20, seed=0):
    """`n` pairs (Q, B) with D = B B^T, exact in float32, of standard normal entries.

    Those whose covariance at tau = 1 has a condition number of 1e4 or more are left
    out.
    """
    generator = np.random.default_rng((seed, n_vars))
    pairs = []
    while len(pairs) < n:
        q, B = generator.standard_normal((2, n_vars, n_vars)).astype(np.float32)
        Q = q - q.T
        psi, root = exact_kernel(Q, B, np.eye(n_vars), np.zeros((n_vars, n_vars)), 1.0)
        covariance = np.array((root * root.T).tolist(), float)
        if np.linalg.cond(covariance) < 1e4:
            pairs.append((Q, B))
    return np.stack([Q for Q, _ in pairs]), np.stack([B for _, B in pairs])


# The variance of centred normal data.
VARIANCE = 1.5


def normal_denoiser(log_snr, z):
    """The posterior mean of such data."""
    return z * (VARIANCE / (VARIANCE + jnp.exp(-log_snr)))


def random_diffusion(n_vars, **options):
    """A diffusion whose Q and root of D are of standard normal entries."""
    q, B = np.random.default_rng(n_vars).standard_normal((2, n_vars, n_vars))
    return eqmdm.LinearDiffusion(q - q.T, dissipation_root=B, **options)


MODES = np.asarray([-1.5, -0.4, 0.5, 1.6])
MODE_STD = 0.15


def mixture_denoiser(log_snr, z):
    """The posterior mean of a mixture of four normals in every coordinate."""
    noise = jnp.exp(-log_snr)
    total = MODE_STD**2 + noise
    gap = z[..., None] - jnp.asarray(MODES, z.dtype).reshape(*([1] * z.ndim), 4)
    weights = jax.nn.softmax(-0.5 * gap**2 / total, axis=-1)
    return jnp.sum(weights * (z[..., None] - gap * (noise / total)), axis=-1)


# All that a linear diffusion can learn.
LEARNED = "skew", "dissipation", "stationary_covariance", "start_covariance", "schedule"


def as_parameters(diffusion):
    """A named diffusion with arrays for its numbers, so that all of as many variables
    share what they compile."""
    recipe, n_vars = diffusion.recipe, diffusion.n_vars
    root = np.asarray(recipe.dissipation_root)
    # Of the rank of all of them: a column of zeros is no noise.
    root = np.pad(root, ((0, 0), (0, n_vars - root.shape[1])))
    rates = (
        diffusion.schedule.rate(jnp.asarray(0.0)),
        diffusion.schedule.rate(jnp.asarray(1.0)),
    )
    new = eqmdm.LinearDiffusion(
        np.asarray(recipe.skew),
        dissipation_root=root,
        stationary_covariance=diffusion.stationary_covariance,
        start_covariance=diffusion.start_covariance,
        schedule=eqmdm.LinearSchedule(*rates),
        interval=eqmdm.TimeInterval(diffusion.t0, diffusion.t1),
        learn=LEARNED,
    )
    return as_arrays(new)


def as_arrays(tree):
    """The same with arrays for its floats, which Equinox would compile anew for."""
    return jax.tree.map(jnp.asarray, tree)


def stacked(diffusions):
    """Diffusions of one size stacked into one, for `jax.vmap`."""
    members = [as_parameters(diffusion) for diffusion in diffusions]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
