"""The text of arrays in the text of modules."""

from jaxtyping import Array

from .checks import concrete


def show_array(value: Array) -> str:
    """The value of a known number, or the dtype and shape of any other array."""
    number = concrete(value)
    if number is not None:
        return f"{number:.6g}"
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"
