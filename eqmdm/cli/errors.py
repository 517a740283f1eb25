"""The presentation of errors to the user of a program."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from .fields import with_option_names


# The exit status of a process killed by SIGPIPE.
_UNREAD = 128 + 13


@contextlib.contextmanager
def quiet_when_unread() -> Iterator[None]:
    """Exit silently if the reader of the output, such as `head`, has closed the pipe.
    Errors are still shown."""
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
    """Redirect the output to the null device, since the interpreter flushes it at exit
    and would report the closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def clean_errors(options: Any) -> Iterator[None]:
    """Show user errors as one line that names options as on the command line."""
    try:
        yield
    # A closed output pipe, which is not a user error.
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {with_option_names(str(error), type(options))}")
    except _compiled_check() as error:
        sys.exit(f"error: {runtime_message(error)}")


@contextlib.contextmanager
def clean_file_errors() -> Iterator[None]:
    """Show a full or missing disk as one line; other errors keep their traceback."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.exit(
            f"error: {error}\nEvery checkpoint written so far is intact: fix the cause "
            "and continue with --resume."
        )


def runtime_message(error: Exception) -> str:
    """The line of an error in a compiled program that says what is wrong."""
    _, _, message = str(error).rpartition("EquinoxRuntimeError: ")
    return message.splitlines()[0]


def _compiled_check() -> type[Exception]:
    """The exception that a failed check inside a compiled program raises."""
    # Imported here, so that earlier errors do not wait for the import of JAX.
    import equinox as eqx

    return eqx.EquinoxRuntimeError
