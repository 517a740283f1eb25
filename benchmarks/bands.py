"""What do matrices that differ by coordinate cost in a training step?

    python benchmarks/bands.py

Times `eqmdm.train_step` with a shared diffusion, and with a `BandedDiffusion` of 1, 4
and as many bands as there are coordinates, whose rates differ, interleaved in one run.
The network predicts the noise of every variable, so that it is the same in all of them.
Prints the median of the ratios of neighbours, in processor seconds, which other
programs on the machine disturb less than seconds, with their quartiles.
"""

import dataclasses
import math

import _common as common
import jax.random as jr
import numpy as np
import tyro
from _training_parts import WholeStep, step_ratios

import eqmdm


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Times training steps with matrices by band."""

    data_shape: tuple[int, int, int] = (28, 28, 1)
    """Height, width and channels of the images."""
    batch_size: int = 32
    """Examples per step."""
    width: int = 32
    """Channels of the U-Net's first level."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """The width of each level, in multiples of the first."""
    diffusions: tuple[str, ...] = ("vpsde", "cld")
    """Diffusions of one and of two variables."""
    repeats: int = 15
    """Timed steps of each, after one that compiles."""
    seed: int = 0
    """The seed of data, parameters and draws."""
    quick: bool = False
    """Use a tiny network on 8x8 images, and two repeats."""


_NAMED = {"vpsde": eqmdm.VPSDE, "cld": eqmdm.CLD}


def diffusions(
    settings: Settings, name: str
) -> dict[str, eqmdm.AbstractLinearDiffusion]:
    """The diffusions that are compared, by their number of bands."""
    size = math.prod(settings.data_shape)
    made: dict[str, eqmdm.AbstractLinearDiffusion] = {"shared": _NAMED[name]()}
    for n_bands in (1, 4, size):
        bands = np.arange(size).reshape(settings.data_shape) % n_bands
        rates = np.geomspace(10, 20, n_bands) if n_bands > 1 else [10.0]
        of_bands = [
            _NAMED[name](schedule=eqmdm.LinearSchedule(0.1, float(rate)))
            for rate in rates
        ]
        made[f"{n_bands} bands"] = eqmdm.BandedDiffusion(of_bands, bands)
    return made


def run(settings: Settings, name: str) -> dict[str, dict[str, float]]:
    """The ratio of each step to the shared one: median and quartiles."""
    key_network, key_step = jr.split(jr.key(settings.seed))

    def model(diffusion: eqmdm.AbstractLinearDiffusion) -> eqmdm.NoiseModel:
        network = eqmdm.nn.UNet(
            settings.data_shape,
            diffusion.n_vars,
            width=settings.width,
            multipliers=settings.multipliers,
            key=key_network,
        )
        return eqmdm.NoiseModel(network, diffusion)

    steps = {
        label: WholeStep(
            model(diffusion), settings.data_shape, settings.batch_size, key=key_step
        )
        for label, diffusion in diffusions(settings, name).items()
    }
    return step_ratios(name, steps, settings.repeats)


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(
            settings, data_shape=(8, 8, 1), width=8, multipliers=(1, 2), repeats=2
        )
    facts = common.facts(settings.seed)
    common.show(facts)
    ratios = {name: run(settings, name) for name in settings.diffusions}
    common.write(settings, facts, ratios=ratios)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
