"""Multivariate diffusion models in JAX, Equinox and Diffrax."""

import typing as _typing
from importlib.machinery import SourceFileLoader as _SourceFileLoader
from importlib.metadata import version as _version


__version__ = _version("eqmdm")

# The public names are those of `_public.py`. They are loaded on first use, so that
# `eqmdm train --help` does not wait a second for the import of JAX and Diffrax.
if _typing.TYPE_CHECKING:
    from ._public import *  # noqa: F403
else:

    def __getattr__(name):
        # A private name can only be a submodule, whose import calls this hook first.
        if not name.startswith("_"):
            from . import _public

            if name in vars(_public):
                value = globals()[name] = vars(_public)[name]
                return value
        if name == "__all__":
            return [name for name in __dir__() if not name.startswith("_")]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        from . import _public

        public = {name for name in vars(_public) if not name.startswith("_")}
        return sorted(public | {"__version__"})

    # An import hook, such as jaxtyping's, changes what is imported while it is on.
    if type(__spec__.loader) is not _SourceFileLoader:
        from . import _public as _public
