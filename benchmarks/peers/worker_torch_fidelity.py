"""Features of torch-fidelity's Inception network, for given weights and images.

    python worker_torch_fidelity.py INPUT.npz OUTPUT.npz

`inception_features.py` writes the input. The output has features in float32 and in
float64, each by the name of the dtype, the size and the image.
"""

import importlib.util
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch


def network() -> type[torch.nn.Module]:
    """torch-fidelity's class, without the rest of the package, which imports
    torchvision."""
    spec = importlib.util.find_spec("torch_fidelity")
    assert spec is not None
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["torch_fidelity"] = package
    from torch_fidelity.feature_extractor_inceptionv3 import (
        FeatureExtractorInceptionV3,
    )

    return FeatureExtractorInceptionV3


def main(source: str, target: str) -> None:
    with np.load(source) as file:
        arrays = dict(file)
    sizes = arrays.pop("sizes").tolist()
    given = {k: v for k, v in arrays.items() if k.startswith("image ")}
    weights = {k: torch.from_numpy(v) for k, v in arrays.items() if k not in given}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "weights.pth"
        torch.save(weights, path)
        model = network()(
            "inception-v3-compat",
            ["2048"],
            feature_extractor_weights_path=str(path),
        )
    features = {}
    for dtype in (torch.float32, torch.float64):
        # Its own option takes "float64" for float32 in this release.
        model.feature_extractor_internal_dtype = dtype
        model.to(dtype)
        for size in sizes:
            model.INPUT_IMAGE_SIZE = size
            for name, image in given.items():
                rgb = np.broadcast_to(image, (*image.shape[:2], 3))
                batch = torch.from_numpy(np.moveaxis(rgb, 2, 0)[None].copy())
                # It rounds the result to float32 in any case.
                (row,) = model(batch)
                key = f"{str(dtype).removeprefix('torch.')} {size} {name}"
                features[key] = row[0].numpy()
    np.savez(target, **features)


if __name__ == "__main__":
    main(*sys.argv[1:])
