"""The parsing of command lines into dataclasses of options."""

from collections.abc import Sequence
from typing import TypeVar

import tyro


T = TypeVar("T")


def parse(
    options: type[T], arguments: Sequence[str] | None = None, prog: str | None = None
) -> T:
    """The options in a command line, by default that of this process.

    `prog` is the program's name in its help.
    """
    return tyro.cli(options, args=arguments, prog=prog)
