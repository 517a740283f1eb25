"""The names of data sets of the user's own: paths, of the Hub, of functions."""

import re
from pathlib import Path


def is_function(name: str) -> bool:
    """Whether a name is one of a function, `module:function`."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def is_on_hub(name: str) -> bool:
    """Whether a name may be one of a data set of the Hub, `org/name`."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and name[0] != "."


def title(name: str) -> str:
    """What files are called after: the last part of a path or a name."""
    if is_function(name) and not Path(name).exists():
        return name.partition(":")[0].rpartition(".")[2]
    path = Path(name)
    stem = path.stem if path.suffix and not path.is_dir() else path.name
    return re.sub(r"[^\w.-]+", "_", stem or path.resolve().name) or "data"
