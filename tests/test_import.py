"""Tests that importing and using the library leaves the user's settings unchanged."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import eqmdm
from eqmdm import nn
from helpers import equations


# Every setting that a program's numbers depend on, to other than its default.
CHOSEN = {
    # With those of `conftest.py`, which compile faster.
    "XLA_FLAGS": f"--xla_force_host_platform_device_count=3 {os.environ['XLA_FLAGS']}",
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_X64": "true",
    "JAX_DEFAULT_MATMUL_PRECISION": "tensorfloat32",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_DEBUG_NANS": "true",
    "JAX_LOG_COMPILES": "false",
    "JAX_TRACEBACK_FILTERING": "off",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "EQX_ON_ERROR": "nan",
}

WATCHED = """
    import os
    import jax

    def settings():
        flags = {f"flag {name}": value for name, value in jax.config.values.items()}
        return flags | {f"variable {name}": os.environ[name] for name in os.environ}

    before = settings()
    BODY
    after = settings()
    changed = {
        name: (before.get(name), after.get(name))
        for name in before.keys() | after.keys()
        # An import may bring flags of its own.
        if name in before or name.startswith("variable")
        if before.get(name) != after.get(name)
    }
    assert not changed, changed
"""

# Each public kind of computation. With JAX's checks for NaN enabled, a computation that
# succeeds has none.
USES = """
    import jax.numpy as jnp
    import jax.random as jr
    import eqmdm

    key = jr.key(0)
    diffusion = eqmdm.CLD(interval=eqmdm.TimeInterval(0.01, 1.0))
    model = eqmdm.DenoiserModel(
        lambda log_snr, z: z / (1 + jnp.exp(-log_snr)), diffusion
    )
    x = jnp.ones(2)
    sampled = eqmdm.sample(model, (2,), key=key, n_samples=2)
    assert sampled.dtype == jnp.result_type(float)
    bound = eqmdm.elbo(model, x, key=key)
    exact = eqmdm.log_likelihood(model, x, key=key)
    assert jnp.isfinite(bound.total) and exact.converged

    levels = eqmdm.GreyLevels(256)
    objective = eqmdm.Objective(
        decoder=eqmdm.DiscreteDecoder(levels),
        levels=eqmdm.GreyLevels(256, dequantiser=eqmdm.CentreDequantiser()),
    )
    network = eqmdm.nn.MLP((3,), 2, width=4, depth=1, key=key)
    noise = eqmdm.NoiseModel(network, eqmdm.LearnedDiffusion(2, key=key))
    optimiser = eqmdm.make_optimiser(1e-3, warmup=2)
    state = eqmdm.TrainState.create(noise, optimiser, key=key)
    state, metrics = eqmdm.train_step(
        state,
        jnp.zeros((8, 3), jnp.uint8),
        objective,
        optimiser,
        batch_size=4,
    )
    assert jnp.isfinite(metrics["loss"][0])
"""


def _run(program, variables):
    # Not those of `conftest.py`.
    mine = ("JAX_", "XLA_", "EQX_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(mine)}
    subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"JAX_PLATFORMS": "cpu"} | variables,
        check=True,
        timeout=300,
    )


def _watched(body):
    return textwrap.dedent(WATCHED).replace("BODY", textwrap.dedent(body))


@pytest.mark.parametrize("variables", [{}, CHOSEN], ids=["default", "chosen"])
def test_import_leaves_every_setting_of_the_user(variables):
    # Their names too, which are loaded on first use.
    _run(_watched("from eqmdm import *"), variables)


def test_settings_that_change_are_noticed():
    # A check that the test above would notice a change.
    for change in (
        "jax.config.update('jax_enable_x64', True)",
        "os.environ['XLA_FLAGS'] = '--xla_cpu_enable_fast_math=true'",
    ):
        with pytest.raises(subprocess.CalledProcessError):
            _run(_watched(change), {})


def test_import_starts_no_backend():
    # Both of these are refused once there is one. A cluster's processes have to import
    # what they run before they know of each other.
    program = """
        import socket
        from eqmdm import *
        import jax

        jax.config.update("jax_num_cpu_devices", 3)
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        # Address 0 is this machine.
        jax.distributed.initialize(f"0:{port}", num_processes=1, process_id=0)
        assert jax.device_count() == 3
    """
    _run(textwrap.dedent(program), {})


def test_import_leaves_data_and_checkpoint_libraries_until_they_are_used():
    # Orbax alone takes a third as long as JAX, and `datasets` longer than it.
    program = """
        import sys
        import jax, equinox, diffrax, lineax, optax

        before = set(sys.modules)
        import eqmdm, eqmdm.data, eqmdm.nn

        late = {
            "datasets", "filelock", "huggingface_hub", "matplotlib", "orbax", "pandas",
            "PIL", "pyarrow", "scipy", "sklearn", "tqdm", "tyro",
        }
        imported = late & (set(sys.modules) - before)
        assert not imported, imported
    """
    _run(textwrap.dedent(program), {})


@pytest.mark.slow
def test_use_works_with_every_setting_and_leaves_it():
    _run(_watched(USES), CHOSEN)


def _precisions(function, *arguments):
    """The precisions that the products and convolutions of a function request."""
    found = set()
    for equation in equations(jax.make_jaxpr(function)(*arguments).jaxpr):
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            precision = equation.params["precision"]
            found |= set(precision if isinstance(precision, tuple) else (precision,))
    return found


@pytest.mark.parametrize("chosen", [None, jax.lax.Precision.HIGHEST], ids=str)
def test_networks_multiply_as_the_user_asks_and_kernels_in_full(chosen):
    images = nn.UNet((4, 4, 1), 1, width=4, multipliers=(1,), key=jr.key(0))
    points = nn.MLP((3,), 1, width=4, depth=1, key=jr.key(0))
    t, image, point = jnp.asarray(0.5), jnp.ones((1, 4, 4, 1)), jnp.ones((1, 3))
    kernel = eqmdm.CLD().compute_kernel
    name = None if chosen is None else chosen.name.lower()
    with jax.default_matmul_precision(name):
        assert _precisions(images, t, image) == {chosen}
        assert _precisions(points, t, point) == {chosen}
        # A kernel in a GPU's reduced precision would be wrong, not less exact.
        assert _precisions(kernel, t) == {jax.lax.Precision.HIGHEST}
