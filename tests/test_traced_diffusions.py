"""Tests of diffusions that are built, or differentiated, inside JAX transforms."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusions import MAKERS, ends_early, evaluate, grid, make
from references import exact_kernel

import eqmdm
from helpers import slow, slow_but, tree_allclose


# A plain function is no argument of `jax.jit`: the time-varying one has two.
@pytest.mark.parametrize(
    "name",
    slow_but(
        ["VPSDE", "LearnedDiffusion-all", "TwoScheduleDiffusion"],
        [n for n in MAKERS if n != "TimeVaryingDiffusion"],
    ),
)
def test_a_diffusion_passes_through_plain_jit(name):
    # Which traces the Python floats that it is made of, where Equinox's leaves them.
    times = grid(make(name))
    kernels = jax.vmap(lambda diffusion, t: diffusion.compute_kernel(t), (None, 0))
    # Fused otherwise, so to rounding.
    expected = evaluate(name, times)["kernel"]
    actual = jax.jit(kernels)(make(name), times)
    assert tree_allclose(actual, expected, rtol=1e-11, atol=1e-11)


def test_matrix_of_entries_that_are_arrays_is_differentiated():
    def log_snr(q):
        diffusion = eqmdm.LinearDiffusion([[0.0, -q], [q, 0.0]], np.diag([0.0, 2.0]))
        return diffusion.compute_kernel(jnp.asarray(0.4)).log_snr

    q, h = jnp.asarray(1.0), 1e-5
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(log_snr)))(
        jnp.stack([q - h, q, q + h])
    )
    slope, difference = slopes[1], (values[2] - values[0]) / (2 * h)
    # 1e-10 of truncation, 1e-11 of rounding.
    assert tree_allclose(slope, difference, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", ["CLD", "LinearDiffusion", "VESDE", "SubVPSDE"])
def test_diffusions_are_built_inside_jit_as_outside(name):
    times = grid(make(name))
    build = lambda t: jax.vmap(lambda t: MAKERS[name]().compute_kernel(t).log_snr)(t)
    built = jax.jit(build)(times)
    # Fused otherwise, so to rounding.
    expected = evaluate(name, times)["log_snr"]
    assert tree_allclose(built, expected, rtol=1e-11, atol=1e-11)


def test_log_snr_range_is_resolved_inside_jit():
    build = lambda: eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-5.0, 8.0))
    ends = jax.jit(lambda: (build().t0, build().t1))()
    assert tree_allclose(ends, (build().t0, build().t1), rtol=1e-12, atol=0)


def from_parameters(q, B, ends):
    return eqmdm.LinearDiffusion(q - q.T, dissipation_root=B, **ends)


@pytest.mark.parametrize("cls", [eqmdm.VPSDE, eqmdm.SubVPSDE])
def test_a_schedule_of_traced_rates_serves_matrices_that_are_known(cls):
    def log_snr(rate):
        diffusion = cls(schedule=eqmdm.ConstantSchedule(rate))
        return diffusion.compute_kernel(jnp.asarray(0.5)).log_snr

    rate = 3.0
    value, slope = jax.jit(jax.value_and_grad(log_snr))(jnp.asarray(rate))
    # The signal's square over the variance, both closed forms.
    signal = np.exp(-0.5 * rate)
    variance = 1 - signal if cls is eqmdm.VPSDE else (1 - signal) ** 2
    power = 1 if cls is eqmdm.VPSDE else 2
    assert tree_allclose(value, np.log(signal / variance), rtol=1e-12, atol=0)
    expected = -0.5 - power * 0.5 * signal / (1 - signal)
    assert tree_allclose(slope, expected, rtol=1e-12, atol=0)


# A random diffusion may be far from its prior at a log-SNR of -4.
@ends_early
@pytest.mark.parametrize(
    "ends",
    [
        {"interval": eqmdm.TimeInterval(1e-3, 1.0)},
        slow({"interval": eqmdm.LogSNRInterval(-4.0, 9.0)}),
    ],
    ids=["t", "snr"],
)
def test_diffusions_are_built_inside_grad_and_vmap(ends, key):
    q, B = jr.normal(key, (2, 2, 2))

    def end(q, B):
        diffusion = from_parameters(q, B, ends)
        return diffusion.compute_kernel(0.9 * diffusion.t1).log_snr

    h = 1e-5
    sizes = jnp.asarray([1 - h, 1.0, 1 + h])[:, None, None]
    compute = jax.jit(jax.vmap(jax.value_and_grad(end, argnums=(0, 1))))
    (low, middle, high), slopes = compute(sizes * q[None], sizes * B[None])
    along = jnp.sum(slopes[0][1] * q) + jnp.sum(slopes[1][1] * B)
    assert tree_allclose(along, (high - low) / (2 * h), rtol=1e-6, atol=1e-7)
    expected = from_parameters(q, B, ends)
    if isinstance(ends["interval"], eqmdm.TimeInterval):
        value = jax.jit(lambda: expected.compute_kernel(0.9 * expected.t1).log_snr)()
        assert tree_allclose(middle, value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n_vars", [slow(2), 3])
def test_gradients_of_the_kernel_are_finite_differences_of_the_exact_one(n_vars):
    generator = np.random.default_rng((1, n_vars))
    normal = lambda: generator.standard_normal((n_vars, n_vars))
    q, B, V = normal(), normal(), normal()
    Q, D = q - q.T, B @ B.T + 0.3 * np.eye(n_vars)
    V[0], V[:, 0] = 0, 0
    S0 = 0.1 * (V @ V.T) + 0.05 * np.diag([0.0] + [1.0] * (n_vars - 1))
    skew, symmetric, inner = normal(), normal(), normal()
    inner[0], inner[:, 0] = 0, 0
    directions = (
        (skew - skew.T, 0 * Q, 0 * Q),
        (0 * Q, symmetric + symmetric.T, 0 * Q),
        (0 * Q, 0 * Q, 0.1 * (inner + inner.T)),
    )
    taus = (1e-3, 0.1, 1.0, 5.0)

    def kernel(tau, Q, D, S0):
        diffusion = eqmdm.LinearDiffusion(
            Q,
            D,
            start_covariance=S0,
            schedule=eqmdm.ConstantSchedule(1.0),
            interval=eqmdm.TimeInterval(1e-4, 5.0),
        )
        kernel = diffusion.perturbation_kernel(tau)
        return kernel.mean_map, kernel.root

    # Reverse mode, as in training.
    jacobians = jax.jit(jax.vmap(jax.jacrev(kernel, (1, 2, 3)), (0, None, None, None)))
    parts = jnp.asarray(taus), jnp.asarray(Q), jnp.asarray(D), jnp.asarray(S0)
    mean_jacobian, root_jacobian = jacobians(*parts)

    def exact(tau, Q, D, S0):
        start = np.zeros_like(S0)
        start[1:, 1:] = np.linalg.cholesky(S0[1:, 1:])
        psi, root = exact_kernel(Q, np.linalg.cholesky(D), np.eye(n_vars), start, tau)
        return (np.array(part.tolist(), float) for part in (psi[:, 0], root))

    h = 3e-5
    for i, tau in enumerate(taus):
        for direction in directions:
            beside = [
                exact(
                    tau,
                    *(
                        M + step * dM
                        for M, dM in zip((Q, D, S0), direction, strict=True)
                    ),
                )
                for step in (-h, h)
            ]
            (low_mean, low_root), (high_mean, high_root) = beside
            mean = (high_mean[:, 0] - low_mean[:, 0]) / (2 * h)
            root = (high_root - low_root) / (2 * h)
            # 1e-6 relative to the largest entry of the derivative; of the root, of
            # each row. 1e-11 for what the difference itself rounds.
            gap = np.abs(directional(mean_jacobian, i, direction) - mean)
            assert np.max(gap) <= 1e-6 * np.max(np.abs(mean)) + 1e-11
            gap = directional(root_jacobian, i, direction) - root
            row_gaps, rows = (np.linalg.norm(part, axis=1) for part in (gap, root))
            assert np.all(row_gaps <= 1e-6 * rows + 1e-11)


def directional(jacobian, i, direction):
    parts = zip(jacobian, direction, strict=True)
    return sum(np.tensordot(part[i], step, 2) for part, step in parts)


def test_gradients_reach_noise_that_enters_at_the_end_of_a_chain():
    # Rows of the root of order tau^(5/2) beside tau^(1/2).
    tau, coupling, friction = 1e-2, 1.3, 0.8
    zero = np.zeros((3, 3))

    def matrices(coupling, friction):
        Q = coupling * (np.diag([-1.0, -1.0], 1) + np.diag([1.0, 1.0], -1))
        return Q, np.asarray([[0.0], [0.0], [np.sqrt(friction)]])

    def exact(coupling, friction):
        Q, R = matrices(coupling, friction)
        _, root = exact_kernel(Q, R, np.eye(3), zero, tau)
        return np.array(root.tolist(), float)

    def root(coupling, friction):
        chain, last = matrices(1.0, 1.0)
        diffusion = eqmdm.LinearDiffusion(
            coupling * chain,
            dissipation_root=jnp.sqrt(friction) * last,
            schedule=eqmdm.ConstantSchedule(1.0),
        )
        return diffusion.transition(jnp.zeros(()), jnp.asarray(tau)).root

    point = jnp.asarray(coupling), jnp.asarray(friction)
    slopes = jax.jit(jax.jacfwd(root, (0, 1)))(*point)
    h = 1e-5
    differences = (
        (exact(coupling + h, friction) - exact(coupling - h, friction)) / (2 * h),
        (exact(coupling, friction + h) - exact(coupling, friction - h)) / (2 * h),
    )
    for slope, difference in zip(slopes, differences, strict=True):
        gap = np.linalg.norm(slope - difference, axis=1)
        assert np.all(gap <= 1e-6 * np.linalg.norm(difference, axis=1))
