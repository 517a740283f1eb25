"""The features that `tests/test_inception.py` compares with: those of torch-fidelity.

    python inception_features.py OUTPUT.json

It makes torch-fidelity's environment if there is none.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import environments
import numpy as np

from eqmdm.cli.solver_study.inception_layers import kernel_shapes


HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

import inception_case as case  # noqa: E402


def main(output: str) -> None:
    python = environments.make("torch-fidelity", {})
    images = {f"image {name}": image for name, image in case.images().items()}
    arrays = case.weights(kernel_shapes()) | images
    with tempfile.TemporaryDirectory() as directory:
        source, target = (str(Path(directory) / f"{n}.npz") for n in ("in", "out"))
        np.savez(source, sizes=np.asarray(case.SIZES), **arrays)
        worker = str(HERE / "worker_torch_fidelity.py")
        subprocess.run([python, worker, source, target], check=True)
        with np.load(target) as features:
            rows = {
                name.replace(" image", ""): features[name][:: case.STRIDE].tolist()
                for name in features.files
            }
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    Path(output).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
