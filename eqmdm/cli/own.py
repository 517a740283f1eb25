"""Objects of the user's own code, by `module:name`."""

import importlib
import os
import sys
from typing import Any

from .fields import did_you_mean


def is_own(name: str) -> bool:
    """Whether a name is that of an object in a module of the user's."""
    return ":" in name


def find_own(given: str, *, argument: str, kind: str) -> Any:
    """What a module of the user's calls `name`, given as `module:name`.

    Modules are found in the working directory too, after all others.

    **Arguments:**

    - `argument`, `kind`: what a user gave the name as, and what it must be of, for
        errors.

    **Raises:** `ValueError` if there is no such module, or no such name in it.
    """
    module, _, name = given.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    must_be = f"`{argument}` must be {kind} as module:name"
    if not (module and name):
        raise ValueError(f"{must_be}; got {given!r}.")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{must_be}; got {given}, whose module cannot be imported ({error})."
        ) from error
    if not hasattr(found, name):
        raise ValueError(
            f"{must_be}; got {given}, and {module} has no {name}."
            f"{did_you_mean(name, (n for n in vars(found) if n[0] != '_'))}"
        )
    return getattr(found, name)
