"""Arrays in the text form of modules."""

from jaxtyping import Array

from .checks import concrete


def show_array(value: Array) -> str:
    """The value of a number; of other arrays, and under a trace, dtype and shape."""
    number = concrete(value)
    if number is not None:
        return f"{number:.6g}"
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"
