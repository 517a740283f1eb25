"""Errors as the user of a program sees them."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from .fields import with_option_names


# As of a program that the signal SIGPIPE has ended.
_UNREAD = 128 + 13


@contextlib.contextmanager
def quiet_when_unread() -> Iterator[None]:
    """Ends the program without a word where what reads its output, such as `head`, has
    left. Its errors are shown nevertheless."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        sys.exit(_UNREAD)
    except SystemExit:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_output()
        raise


def _drop_output() -> None:
    """Write nowhere from now on: the interpreter, which writes what is left when it
    ends, would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def clean_errors(options: Any) -> Iterator[None]:
    """The user's errors, as one line that names options as they are given."""
    try:
        yield
    # That of the output, which is no error of the user's.
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {with_option_names(str(error), type(options))}")
    except _compiled_check() as error:
        sys.exit(f"error: {runtime_message(error)}")


@contextlib.contextmanager
def clean_file_errors() -> Iterator[None]:
    """A disk that is full or gone, as one line; other errors keep their traceback."""
    try:
        yield
    except BrokenPipeError:
        raise
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
