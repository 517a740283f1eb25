"""Objects in the user's own code, given as `module:name`."""

import importlib
import os
import sys
from typing import Any

from .hints import did_you_mean


def is_own(name: str) -> bool:
    """Whether a name has the form `module:name`."""
    return ":" in name


def find_own(given: str, *, argument: str, kind: str) -> Any:
    """The object that the user names as `module:name`.

    Modules are also searched for in the working directory, last of all.

    **Arguments:**

    - `argument`, `kind`: the argument that gives the name, and what kind of object it
        must name; both are used in errors.

    **Raises:** `ValueError` if there is no such module, or no such name in it.
    """
    module, _, name = given.partition(":")
    # Python puts the directory of a program on the path, not the user's.
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
