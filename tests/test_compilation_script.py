from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from eqmdm.cli import compilation


_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def keep_compiled(monkeypatch, tmp_path):
    before = {name: jax.config.values[name] for name in _SETTINGS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield compilation.keep_compiled
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_programs_are_kept_though_others_were_compiled_before(keep_compiled, tmp_path):
    jax.jit(lambda x: 2.5 * x)(jnp.ones(3))
    keep_compiled()
    directory = Path(jax.config.values["jax_compilation_cache_dir"])
    assert directory.is_relative_to(tmp_path / "eqmdm" / "compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.jit(lambda x: 3.5 * x)(jnp.ones(3))
    assert list(directory.glob("jit__lambda*"))


def test_settings_of_the_user_stay(keep_compiled, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    keep_compiled()
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "own")
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_compilation_cache_max_size", 10**6)
    keep_compiled()
    assert jax.config.values["jax_compilation_cache_max_size"] == 10**6


def test_programs_of_virtual_devices_are_not_kept(keep_compiled, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    keep_compiled()
    assert jax.config.values["jax_compilation_cache_dir"] is None
