"""Files with the weights of the Inception network."""

import zipfile
from pathlib import Path

import numpy as np

from ..._core.array_file import read_arrays
from .inception import BATCH_NORM, Inception
from .inception_layers import N_CLASSES, N_FEATURES, kernel_shapes


_KEPT = "pt_inception-2015-12-05-6726825d.pth"
_CONVERSION = (
    "import torch, safetensors.torch; "
    "weights = torch.load('FILE', weights_only=True); "
    "safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in "
    "weights.items()}, 'inception.safetensors')"
)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: eight bytes, and a table in JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def check_not_pickled(path: Path) -> None:
    """**Raises:** `ValueError` for a file that `torch.save` wrote."""
    with path.open("rb") as file:
        # The first opcode of a pickle, which files before PyTorch 1.6 begin with.
        pickled = file.read(1) == b"\x80"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            pickled = any(name.endswith("data.pkl") for name in archive.namelist())
    if pickled:
        raise ValueError(
            "`features` must be a file that executes no code; "
            f"{path} is a pickle of PyTorch. Convert it once, with PyTorch: "
            f"{_CONVERSION}"
        )


def load_inception(path: Path) -> Inception:
    """The network with the weights of a safetensors file, in float32.

    Its tensors have the names that pytorch-fid and torch-fidelity give them. Others,
    such as the numbers of batches that batch norm has seen, are ignored.

    **Raises:** `ValueError` if tensors are missing, or unsuitable.
    """
    arrays = read_arrays(path)
    shapes = _tensor_shapes()
    missing = [name for name in shapes if name not in arrays]
    if missing:
        raise ValueError(
            "`features` must hold the tensors of the Inception network by the names of "
            f"{_KEPT}; {path} lacks {_listed(missing)}."
        )
    wrong = {k: arrays[k].shape for k in shapes if arrays[k].shape != shapes[k]}
    if wrong:
        name, shape = next(iter(wrong.items()))
        more = f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
        # The weights of torchvision's own Inception network have the same names.
        raise ValueError(
            f"`features` must hold tensors of the shapes in {_KEPT}, such as "
            f"{shapes[name]} for {name}; {path} has {shape} there{more}. Weights of "
            "other Inception networks, such as that of torchvision, do not give the "
            "Fréchet Inception distance."
        )
    unusable = [name for name in shapes if not _is_usable(name, arrays[name])]
    if unusable:
        raise ValueError(
            "`features` must hold finite floating-point numbers, and variances that "
            f"are not negative; {path} has others in {_listed(unusable)}. Convert the "
            "file again."
        )
    return Inception(arrays, np.float32)


def _tensor_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in kernel_shapes().items():
        shapes[f"{name}.conv.weight"] = shape
        shapes |= {f"{name}.bn.{part}": shape[:1] for part in BATCH_NORM}
    # The features do not need it, but it tells this network from others.
    return shapes | {"fc.weight": (N_CLASSES, N_FEATURES)}


def _is_usable(name: str, array: np.ndarray) -> bool:
    if not np.issubdtype(array.dtype, np.floating) or not np.all(np.isfinite(array)):
        return False
    return not name.endswith("running_var") or bool(np.all(array >= 0))


def _listed(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return names[0] + more
