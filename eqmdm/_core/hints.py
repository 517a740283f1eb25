"""Hints for names that are unknown."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A hint with the closest names, to end an error; empty if no name is close."""
    by_lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.4)
    suggestions = " or ".join(by_lower[known] for known in near)
    return f" Did you mean {suggestions}?" if near else ""
