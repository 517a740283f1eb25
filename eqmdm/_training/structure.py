"""Trees of modules as JSON: data only, so that reading one can run no foreign code."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


_PACKAGE = __name__.split(".")[0]
_DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
_DTYPES += ("uint64", "bfloat16", "float16", "float32", "float64")


def describe(tree: Any) -> Any:
    """The structure of `tree`, as what `json.dumps` takes: all but its JAX arrays.

    A JAX array becomes a placeholder with its name (`jax.tree_util.keystr` of its
    place in the tree), shape and dtype. NumPy arrays are constants: their values are
    kept, exactly.

    **Arguments:**

    - `tree`: final modules of this package, nested with tuples, lists, dictionaries,
        numbers, strings and arrays.

    **Raises:**

    `TypeError`, naming the place in the tree, for anything else.
    """
    return _describe(tree, "")


def rebuild(description: Any, arrays: Mapping[str, Any] | None = None) -> Any:
    """The tree that `describe` described.

    Only final modules of this package are built, found by looking their names up among
    the classes that exist; no name from the description is ever imported or called,
    and no `__init__` runs. With `arrays` given, `__check_init__` does, so that values
    the class refuses are refused here too.

    **Arguments:**

    - `description`: what `describe` returned, as it is or through JSON.
    - `arrays`: the values of the JAX arrays, by name. If it is left out, each is a
        `jax.ShapeDtypeStruct`.

    **Raises:**

    `ValueError` for a description that `describe` does not make: unknown classes,
    missing or additional fields, arrays of another shape or dtype.
    """
    return _rebuild(description, arrays, "")


def _describe(node: Any, path: str) -> Any:
    # NumPy's scalars come first: `np.float64` is also a Python `float`.
    if isinstance(node, np.ndarray | np.generic):
        return {
            "kind": "constant" if isinstance(node, np.ndarray) else "scalar",
            "dtype": node.dtype.name,
            "shape": list(node.shape),
            "values": [_plain(value) for value in node.ravel().tolist()],
        }
    if isinstance(node, jax.Array | jax.ShapeDtypeStruct):
        return {
            "kind": "array",
            "name": path.removeprefix("."),
            "dtype": jnp.dtype(node.dtype).name,
            "shape": list(node.shape),
        }
    if node is None or isinstance(node, bool | int | float | str):
        return _plain(node)
    if type(node) in (tuple, list):
        items = [_describe(item, f"{path}[{i}]") for i, item in enumerate(node)]
        return {"kind": type(node).__name__, "items": items}
    if type(node) is dict and all(isinstance(key, str) for key in node):
        items = {k: _describe(item, f"{path}[{k!r}]") for k, item in node.items()}
        return {"kind": "dict", "items": items}
    if isinstance(node, eqx.Module):
        return _describe_module(node, path)
    raise TypeError(
        f"`model{path}` must be data that a description can hold; got {node!r} of type "
        f"{type(node).__qualname__}. Make it a module of this package, or pass `like=` "
        "when the run is loaded."
    )


def _describe_module(module: eqx.Module, path: str) -> Any:
    name = _class_name(type(module))
    if _known_classes().get(name) is not type(module):
        raise TypeError(
            f"`model{path}` must be a final module of {_PACKAGE} to be described; got "
            f"{name}. A run that holds it is loaded with `like=`, a model of the same "
            "structure."
        )
    fields = {
        field.name: _describe(getattr(module, field.name), f"{path}.{field.name}")
        for field in dataclasses.fields(module)
    }
    return {"kind": "module", "class": name, "fields": fields}


def _rebuild(node: Any, arrays: Mapping[str, Any] | None, path: str) -> Any:
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if not isinstance(node, dict):
        raise ValueError(f"`description{path}` must be a JSON object; got {node!r}.")
    match node:
        case {"kind": "module", "class": str(name), "fields": dict(fields)}:
            return _rebuild_module(name, fields, arrays, path)
        case {"kind": "array", "name": str(), "dtype": str(), "shape": list()}:
            return _rebuild_array(node, arrays)
        case {"kind": "tuple" | "list" as kind, "items": list(items)}:
            built = [_rebuild(x, arrays, f"{path}[{i}]") for i, x in enumerate(items)]
            return tuple(built) if kind == "tuple" else built
        case {"kind": "dict", "items": dict(items)}:
            return {k: _rebuild(x, arrays, f"{path}[{k!r}]") for k, x in items.items()}
        case {"kind": "float", "value": "nan" | "inf" | "-inf" as value}:
            return float(value)
        case {"kind": "constant" | "scalar" as kind, "values": list(values)}:
            values = [_rebuild(value, None, path) for value in values]
            constant = np.array(values, _dtype(node.get("dtype"), path))
            constant = constant.reshape(node.get("shape"))
            return constant if kind == "constant" else constant[()]
    raise ValueError(f"`description{path}` is not one that `describe` makes: {node!r}.")


def _rebuild_module(
    name: str, fields: dict, arrays: Mapping[str, Any] | None, path: str
) -> eqx.Module:
    cls = _known_classes().get(name)
    if cls is None:
        raise ValueError(
            f"`description{path}` names the class {name}, which is not a final module "
            f"of {_PACKAGE}, so it is not built from a file. Build the model yourself "
            "and pass it as `like=`."
        )
    expected = {field.name for field in dataclasses.fields(cls)}
    # Static fields that came later than the description: before, all was as by default.
    later = {
        field.name: field.default
        for field in dataclasses.fields(cls)
        if field.metadata.get("static", False)
        and field.default is not dataclasses.MISSING
    }
    fields = later | fields
    if set(fields) != expected:
        raise ValueError(
            f"`description{path}` must give {name} the fields {sorted(expected)}; got "
            f"{sorted(fields)}. Was it written by another version of {_PACKAGE}?"
        )
    # As Equinox does on unflattening: `__init__` would draw new parameters.
    module = object.__new__(cls)
    for field, value in fields.items():
        built = _rebuild(value, arrays, f"{path}.{field}")
        object.__setattr__(module, field, built)
    if arrays is not None:
        for base in cls.__mro__:
            if "__check_init__" in vars(base):
                vars(base)["__check_init__"](module)
    return module


def _rebuild_array(node: dict, arrays: Mapping[str, Any] | None) -> Any:
    name, shape = node["name"], tuple(node["shape"])
    dtype = _dtype(node["dtype"], name)
    if arrays is None:
        return jax.ShapeDtypeStruct(shape, dtype)
    if name not in arrays:
        raise ValueError(f"`arrays` has no {name!r}, which the description names.")
    array = arrays[name]
    if tuple(array.shape) != shape or array.dtype != dtype:
        raise ValueError(
            f"`arrays[{name!r}]` must be {dtype.name} of shape {shape}; got "
            f"{jnp.dtype(array.dtype).name} of shape {tuple(array.shape)}."
        )
    return array if isinstance(array, jax.Array) else jnp.asarray(array)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"kind": "float", "value": repr(value)}
    return value


def _dtype(name: Any, path: str) -> np.dtype:
    if name not in _DTYPES:
        raise ValueError(
            f"`description{path}` must have one of the dtypes {', '.join(_DTYPES)}; "
            f"got {name!r}."
        )
    return jnp.dtype(name)


def _class_name(cls: type) -> str:
    return f"{cls.__module__.split('.')[0]}.{cls.__qualname__}"


def _known_classes() -> dict[str, type]:
    # Looked up at each call, because modules of the package may be imported later.
    return {_class_name(cls): cls for cls in _subclasses(eqx.Module) if _is_own(cls)}


def _subclasses(cls: type) -> Iterator[type]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _is_own(cls: type) -> bool:
    own = cls.__module__.split(".")[0] == _PACKAGE
    return own and getattr(cls, "__final__", False)
