"""Draw the schedules by scale of the runs of processes.toml.

    python benchmarks/studies/plot_scales.py FILE

At the same time, how far the log-SNR of the coefficients of each scale is from that of
VPSDE: the fixed schedules, and those that each seed has learned.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro


# The runs name modules of this folder by their place in a clone.
sys.path.insert(0, str(Path(__file__).parents[2]))

import eqmdm
from benchmarks.studies.haar_processes import BASIS
from eqmdm.cli import plots, styles
from eqmdm.cli.trained import load_trained


SCALES = ("mean", "coarse differences", "middle differences", "fine differences")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Draws the schedules by scale."""

    path: Annotated[Path, tyro.conf.Positional]
    """The picture."""
    runs: Path = Path("runs/studies/processes/vector")
    """The runs of the grid with denoisers of a vector."""


@eqx.filter_jit
def log_snrs(diffusion: eqmdm.AbstractLinearDiffusion, times: jax.Array) -> jax.Array:
    """The log-SNR at each time, of shape (times, *data) or (times,)."""
    return jax.vmap(diffusion.log_snr)(times)


def excess(diffusion: Any, times: jax.Array) -> np.ndarray:
    """The log-SNR of each scale less that of VPSDE, of shape (times, scales)."""
    found = np.asarray(log_snrs(diffusion, times))
    vpsde = np.asarray(log_snrs(eqmdm.VPSDE(interval=diffusion.interval), times))
    first = [np.argwhere(BASIS.bands == scale)[0] for scale in range(len(SCALES))]
    return np.stack([found[:, *place] for place in first], axis=1) - vpsde[:, None]


def main(settings: Settings) -> None:
    figure, panels = plt.subplots(
        1, 2, figsize=(9, 4.2), sharex=True, layout="constrained"
    )
    for axes, name in zip(panels, ("fixed", "learned"), strict=True):
        seeds = sorted((settings.runs / f"by-scale-{name}").glob("seed-*"))
        for seed, run in enumerate(seeds):
            trained = load_trained(run, data_dir=None, trust_code=True)
            diffusion = trained.model.diffusion
            t0, t1 = float(diffusion.t0), float(diffusion.t1)
            # Inside of the interval, whose ends rounding could leave.
            times = jnp.geomspace(t0 * 1.0001, t1 * 0.9999, 200)
            values = excess(diffusion, times)
            for scale, label in enumerate(SCALES):
                look = styles.look(scale)
                axes.plot(
                    times,
                    values[:, scale],
                    color=look.color,
                    ls=look.line,
                    lw=1.2,
                    label=label if seed == 0 else None,
                )
            if name == "fixed":
                break
        axes.set_xscale("log")
        axes.set_xlabel("time")
        axes.set_title(f"{name} schedules")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("log-SNR less that of VPSDE")
    panels[0].legend()
    plots.add_caption(
        figure,
        "8x8 digits in the Haar basis, a schedule for each scale between the ends of "
        "VPSDE; learned: one line for each of the three seeds, after 500 steps.",
    )
    settings.path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, settings.path)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
