"""A short training, for the short form of a benchmark of a trained run."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eqmdm.cli.parsing import parse
from eqmdm.cli.train import program
from eqmdm.cli.train.options import TrainOptions


_SHORT = "--steps=4 --warmup=2 --width=8 --batch-size=4 --log-every=2"
_SHORT += " --validate-every=4 --checkpoint-every=4 --validation-examples=4"
_SHORT += " --test-examples=0 --n-samples=0"
# For images of which most pixels are background.
LAPTOP = "--data={directory}/images.npy --preset=laptop --diffusion=vpsde"


@contextlib.contextmanager
def given_or_short(run: Path | None, arguments: str, *, quick: bool) -> Iterator[Path]:
    """The run that was given, or with `quick` a short one, trained with `arguments`."""
    if run is not None:
        yield run
        return
    if not quick:
        raise SystemExit(
            "error: the directory of a run must be given; the docstring of the program "
            "has the command that trains it. Only --quick trains a short one itself."
        )
    with tempfile.TemporaryDirectory() as directory:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (80, 16, 16, 1))
        images[rng.random(images.shape) < 0.7] = 0
        np.save(Path(directory) / "images.npy", images.astype(np.uint8))
        short = [*arguments.format(directory=directory).split(), *_SHORT.split()]
        program.run(parse(TrainOptions, [*short, f"--run-dir={directory}/run"]))
        yield Path(directory) / "run"
