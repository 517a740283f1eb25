"""Diffusions and networks of the user's own, which options name as `module:name`."""

from typing import Any

import equinox as eqx
import jax

import eqmdm

from .._core.own import find_own, is_own


# The options that may name code.
_OPTIONS = ("diffusion", "network")


def own_names(options: Any) -> dict[str, str]:
    """The options of a run that name the user's own code, and what they name."""
    given = {name: getattr(options, name) for name in _OPTIONS}
    return {name: value for name, value in given.items() if value and is_own(value)}


def make_diffusion(given: str, settings: dict[str, Any]) -> eqmdm.AbstractProcess:
    """The diffusion that a class or function of the user's makes from `settings`.

    **Raises:** `ValueError` if it cannot be imported, does not accept the settings, or
    makes no diffusion.
    """
    kind = "a class or a function that makes a diffusion,"
    make = find_own(given, argument="diffusion", kind=kind)
    made = _called(make, "diffusion", given, **settings)
    if not isinstance(made, eqmdm.AbstractProcess):
        raise ValueError(
            f"`diffusion` must be {kind} as module:name; {given} makes a "
            f"{type(made).__name__}."
        )
    return made


def check_linear(options: Any, diffusion: eqmdm.AbstractProcess) -> None:
    """**Raises:** `ValueError` for a score or a form that needs a linear diffusion, if
    it is not linear, and for the form that needs another one, if it is."""
    if isinstance(diffusion, eqmdm.AbstractLinearDiffusion):
        if options.form == "local":
            raise ValueError(
                "`form` must not be local for a linear diffusion, whose kernels are "
                f"exact; got it for {options.diffusion}. Try hsm, or leave it out."
            )
        return
    is_not = f"{options.diffusion}, which is not linear and has no kernels"
    if options.score != "free":
        raise ValueError(f"`score` must be free for {is_not}; got {options.score}.")
    if options.form not in ("local", "ism", "hutchinson"):
        raise ValueError(
            f"`form` must be local, ism or hutchinson for {is_not}; got {options.form}."
        )


def make_network(
    given: str, shape: tuple[int, ...], n_vars: int, *, key: jax.Array, **told: Any
) -> Any:
    """The network that a class or function of the user's makes for one example.

    It is called as `make(shape, n_vars, key=key)`, with the keywords `condition` and
    `noise_levels` if the model has these.

    **Raises:** `ValueError` if it cannot be imported, does not accept these arguments,
    or makes nothing that can be called or trained.
    """
    kind = "unet, mlp, or a class or a function that makes a network,"
    make = find_own(given, argument="network", kind=kind)
    more = {name: kind for name, kind in told.items() if kind is not None}
    made = _called(make, "network", given, shape, n_vars, key=key, **more)
    if not callable(made) or not jax.tree.leaves(
        eqx.filter(made, eqx.is_inexact_array)
    ):
        raise ValueError(
            f"`network` must be {kind} as module:name; {given} makes a "
            f"{type(made).__name__}, which cannot be called or has no parameters."
        )
    return made


def _called(make: Any, argument: str, given: str, *values: Any, **named: Any) -> Any:
    accepted = ", ".join([*("shape, n_vars" for _ in values[:1]), *named])
    try:
        return make(*values, **named)
    except TypeError as error:
        raise ValueError(
            f"`{argument}` must name what can be called with {accepted}; {given} "
            f"raised: {error}."
        ) from error
