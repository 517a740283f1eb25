"""Errors as the user of a program sees them."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from .fields import with_option_names


@contextlib.contextmanager
def clean_errors(options: Any) -> Iterator[None]:
    """The user's errors, as one line that names options as they are given."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {with_option_names(str(error), type(options))}")
    except _compiled_check() as error:
        sys.exit(f"error: {runtime_message(error)}")


@contextlib.contextmanager
def clean_file_errors() -> Iterator[None]:
    """A disk that is full or gone, as one line; other errors keep their traceback."""
    try:
        yield
    except OSError as error:
        sys.exit(
            f"error: {error}\nEvery checkpoint that was written is intact: mend the "
            "cause and continue with --resume."
        )


def runtime_message(error: Exception) -> str:
    """The one line of an error in a compiled program that says what is wrong."""
    _, _, message = str(error).rpartition("EquinoxRuntimeError: ")
    return message.splitlines()[0]


def _compiled_check() -> type[Exception]:
    """The error of a check inside a compiled program."""
    # Not at the top: a program that has failed by then need not wait for JAX.
    import equinox as eqx

    return eqx.EquinoxRuntimeError
