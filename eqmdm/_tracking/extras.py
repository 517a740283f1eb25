"""Errors for packages of trackers that are not installed."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def naming_extra(extra: str) -> Iterator[None]:
    """**Raises:** `ModuleNotFoundError`, with the extra to install, if an import within
    fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this tracker needs {error.name}, which comes with the extra `{extra}`: "
            f"pip install 'eqmdm[{extra}]'",
            name=error.name,
        ) from error
