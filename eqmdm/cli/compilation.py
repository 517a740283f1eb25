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
    """Sets JAX's persistent compilation cache, where the user has not.

    `JAX_COMPILATION_CACHE_DIR` names another directory and
    `JAX_ENABLE_COMPILATION_CACHE=false` does without. The oldest entries go where they
    would take more than four gigabytes.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    # Virtual devices of a CPU wait for one another for ever in a program that divides
    # parameters and that was read from a cache (jaxlib 0.10.2).
    if _VIRTUAL_DEVICES in os.environ.get("XLA_FLAGS", ""):
        return
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(root) / "eqmdm" / "compiled" / _processor()
    jax.config.update("jax_compilation_cache_dir", str(directory))
    if jax.config.values["jax_compilation_cache_max_size"] == _UNLIMITED:
        jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    # Whatever was compiled before, by imports, has settled that there is no cache.
    compilation_cache.reset_cache()


def _processor() -> str:
    """A name for the instructions that this processor has.

    Programs compiled for a CPU may use all of them, and a home directory is often
    shared by machines that differ.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    described = {line for line in lines if line.startswith(("flags", "Features"))}
    text = "\n".join([platform.machine(), platform.processor(), *sorted(described)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
