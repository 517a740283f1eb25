"""The persistent compilation cache of the programs."""

import hashlib
import os
import platform
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache


_MAX_BYTES = 4 * 2**30
_UNLIMITED = -1  # JAX's default
_VIRTUAL_DEVICES = "xla_force_host_platform_device_count"


def keep_compiled() -> None:
    """Enable JAX's persistent compilation cache unless the user has configured one.

    `JAX_COMPILATION_CACHE_DIR` chooses another directory, and
    `JAX_ENABLE_COMPILATION_CACHE=false` disables the cache. Beyond four gigabytes the
    oldest entries are evicted.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    # A program with sharded parameters that is loaded from the cache deadlocks on
    # virtual CPU devices (jaxlib 0.10.2).
    if _VIRTUAL_DEVICES in os.environ.get("XLA_FLAGS", ""):
        return
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(root) / "eqmdm" / "compiled" / _processor()
    jax.config.update("jax_compilation_cache_dir", str(directory))
    if jax.config.values["jax_compilation_cache_max_size"] == _UNLIMITED:
        jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    # JAX decides at its first compilation whether there is a cache, and importing this
    # package has already compiled something.
    compilation_cache.reset_cache()


def _processor() -> str:
    """A hash of the instruction set of this processor.

    Compiled programs may use any of its instructions, and different machines often
    share a home directory.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    described = {line for line in lines if line.startswith(("flags", "Features"))}
    text = "\n".join([platform.machine(), platform.processor(), *sorted(described)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
