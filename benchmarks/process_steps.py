"""What does a training step of each process cost, relative to that of VPSDE?

    python benchmarks/process_steps.py --output FILE

Times `eqmdm.train_step` under each process with the same U-Net, but for its number of
variables, interleaved in one run, in units of VPSDE: noise models relative to a noise
model, denoisers relative to a denoiser. Prints the median of the ratios of neighbours,
in processor seconds, with their quartiles. Processes that are not linear are simulated,
at a cost that grows with the image but not with the network.
"""

import dataclasses
from typing import Any

import _common as common
import jax.random as jr
import numpy as np
import tyro
from _training_parts import WholeStep, step_ratios

import eqmdm


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Times training steps under each process."""

    sides: tuple[int, ...] = (8, 28)
    """The heights and widths of images."""
    batch_size: int = 32
    """Examples per step."""
    width: int = 32
    """Channels of the U-Net's first level."""
    repeats: int = 9
    """Timed steps of each, after one that compiles."""
    seed: int = 0
    """The seed of data, parameters and draws."""
    quick: bool = False
    """Use a tiny network on 8x8 images, and two repeats."""


Models = dict[str, tuple[eqmdm.AbstractModel, eqmdm.AbstractForm | None]]


def network(
    settings: Settings, shape: tuple[int, ...], n_vars: int, **told: Any
) -> Any:
    key = jr.key(settings.seed)
    return eqmdm.nn.UNet(shape, n_vars, width=settings.width, key=key, **told)


def noise_models(settings: Settings, shape: tuple[int, ...]) -> Models:
    """Each process that a noise model can have."""
    vpsde, cld = eqmdm.VPSDE(), eqmdm.CLD()
    made = lambda process: eqmdm.NoiseModel(
        network(settings, shape, process.n_vars), process
    )
    logistic = made(eqmdm.TargetDiffusion([[0.0]], [[0.5]], eqmdm.LogisticTarget()))
    mean = eqmdm.nn.MLP(shape, 1, width=64, key=jr.key(settings.seed))
    started = eqmdm.ConditionedStartModel(made(cld), eqmdm.nn.StartMean(mean, 1))
    learned = eqmdm.LearnedDiffusion(2, key=jr.key(settings.seed))
    hutchinson = eqmdm.ImplicitScoreMatching(eqmdm.HutchinsonDivergence())
    return {
        "VPSDE": (made(vpsde), None),
        "Student t, hidden": (
            eqmdm.StudentTModel(made(vpsde), 4.0, hidden=True),
            None,
        ),
        "logistic, local": (logistic, eqmdm.LocalScoreMatching()),
        "logistic, implicit": (logistic, hutchinson),
        "CLD": (made(cld), None),
        "CLD, conditioned start": (started, None),
        "learned, K = 2": (made(learned), None),
        "learned, K = 3": (
            made(eqmdm.LearnedDiffusion(3, key=jr.key(settings.seed))),
            None,
        ),
    }


def denoisers(settings: Settings, shape: tuple[int, ...]) -> Models:
    """Each process that a denoiser of one network can have."""
    vpsde = eqmdm.VPSDE()
    data = np.asarray(jr.normal(jr.key(0), (8, *shape)), np.float32)
    basis = eqmdm.HaarBasis(shape)
    rates = np.geomspace(10, 20, basis.bands.max() + 1)
    bands = eqmdm.BandedDiffusion(
        [eqmdm.VPSDE(schedule=eqmdm.LinearSchedule(0.1, float(b))) for b in rates],
        basis.bands,
    )
    told = network(settings, shape, 1, noise_levels=basis.noise_levels)
    vector = eqmdm.PreconditionedDenoiser(told, 1.0, (-15.0, 15.0), basis=basis)
    made = lambda process: eqmdm.DenoiserModel.for_data(
        network(settings, shape, 1), process, data
    )
    student = eqmdm.StudentTModel.for_data(
        network(settings, shape, 1), vpsde, data, 4.0
    )
    return {
        "VPSDE": (made(vpsde), None),
        "CLD": (made(eqmdm.CLD()), None),
        "Student t, shown": (student, None),
        "VPSDE, told the vector": (eqmdm.DenoiserModel(vector, vpsde), None),
        "by scale": (eqmdm.DenoiserModel(vector, bands), None),
    }


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(settings, sides=(8,), width=8, repeats=2)
    facts = common.facts(settings.seed)
    common.show(facts)
    ratios = {}
    for side in settings.sides:
        shape = side, side, 1
        for kind, make in (("noise", noise_models), ("denoiser", denoisers)):
            steps = {
                label: WholeStep(
                    model, shape, settings.batch_size, form=form, key=jr.key(1)
                )
                for label, (model, form) in make(settings, shape).items()
            }
            title = f"{kind} {side}"
            ratios[title] = step_ratios(title, steps, settings.repeats)
            common.write(settings, facts, ratios=ratios)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
