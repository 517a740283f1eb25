"""Errors as the user of a script sees them."""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator

import equinox as eqx


@contextlib.contextmanager
def clean_errors() -> Iterator[None]:
    """Errors that are the user's to mend, as one line instead of a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
    except eqx.EquinoxRuntimeError as error:
        sys.exit(f"error: {runtime_message(error)}")


@contextlib.contextmanager
def clean_file_errors() -> Iterator[None]:
    """A disk that is full, or gone, as one line; other errors are ours to mend."""
    try:
        yield
    except OSError as error:
        sys.exit(
            f"error: {error}\nEvery checkpoint that was written is intact: mend the "
            "cause and continue with --resume."
        )


def runtime_message(error: eqx.EquinoxRuntimeError) -> str:
    """The one line of an error in a compiled program that says what is wrong."""
    _, _, message = str(error).rpartition("EquinoxRuntimeError: ")
    return message.splitlines()[0]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The names nearest to a wrong one as the end of an error; empty if none is."""
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(near)}?" if near else ""
