"""Paths of every variable of the named diffusions, and their log-SNR in time.

    eqmdm plot-diffusions --path benchmarks/results/diffusions.png

Paths start at -1 and 1 and are solved by Diffrax from `eqmdm.forward_sde`.
"""

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import eqmdm

from .. import plots
from ..errors import clean_errors
from ..styles import BLUE, DIFFUSIONS, VERMILLION, looks
from .options import PlotOptions


_DRAWN = {
    "VPSDE": eqmdm.VPSDE(),
    "CLD": eqmdm.CLD(),
    "ALDA": eqmdm.ALDA(),
    "MALDA": eqmdm.MALDA(),
}
_LABELS = ("data (unit variance)", "auxiliary 1", "auxiliary 2")
# The distance between markers of a log-SNR, as a fraction of the panel's diagonal.
_MARKED = 0.08


def run(settings: PlotOptions) -> None:
    with clean_errors(settings):
        file = settings.file
    figure = plots.plt.figure(figsize=(12, 7.8), layout="constrained")
    grid = figure.add_gridspec(4, len(_DRAWN), height_ratios=(2, 1, 1, 2.2))
    snr_axes = figure.add_subplot(grid[3, :])
    of_name = looks(_DRAWN, DIFFUSIONS)
    for column, (name, diffusion) in enumerate(_DRAWN.items()):
        times, paths = solve(diffusion, settings)
        for row in range(diffusion.n_vars):
            axes = figure.add_subplot(grid[row, column])
            for start, color in enumerate((BLUE, VERMILLION)):
                axes.plot(times, paths[start, :, :, row].T, color=color, lw=0.5)
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.set_ylim(-3.2, 3.2)
            last = row == diffusion.n_vars - 1
            axes.tick_params(labelbottom=last)
            if last:
                axes.set_xlabel("diffusion time")
            if column == 0 or row > 0:
                axes.set_ylabel(_LABELS[row])
            if row == 0:
                axes.set_title(name)
        t = jnp.geomspace(diffusion.t0, diffusion.t1, 400)
        snr_axes.plot(
            t,
            jax.jit(jax.vmap(diffusion.log_snr))(t),
            markevery=_MARKED,
            ms=5,
            label=name,
            **of_name[name].settings,
        )
    snr_axes.axhline(0, color="0.8", lw=0.8, zorder=0)
    snr_axes.set_xlim(0, 1)
    snr_axes.set_ylim(-10, 20)
    snr_axes.set_xlabel("diffusion time")
    snr_axes.set_ylabel("log signal-to-noise ratio\n(natural logarithm)")
    snr_axes.legend()
    plots.add_caption(
        figure,
        f"Above: {settings.n_paths} paths from each of the data -1 (blue) and 1 "
        f"(vermillion), {settings.n_steps} steps, seed {settings.seed}. Below: the "
        "log-SNR of each diffusion at its default settings",
    )
    with clean_errors(settings):
        file.parent.mkdir(parents=True, exist_ok=True)
        plots.save(figure, file, dots_per_inch=100)
    print(f"written: {file}")


def solve(
    diffusion: eqmdm.AbstractLinearDiffusion, settings: PlotOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Times, and paths of shape (starts, paths, times, variables)."""
    times = jnp.linspace(0, diffusion.t1, settings.n_steps + 1)

    def path(x, key):
        key_path, key_start = jr.split(key)
        problem = eqmdm.forward_sde(diffusion, x, key=key_path)
        solution = diffrax.diffeqsolve(
            problem.terms,
            diffrax.SEA(),
            problem.t0,
            problem.t1,
            None,
            problem.initial(key=key_start),
            stepsize_controller=diffrax.StepTo(times),
            saveat=diffrax.SaveAt(ts=times),
            max_steps=settings.n_steps,
        )
        assert solution.ys is not None
        return solution.ys

    starts = jnp.asarray([-1.0, 1.0])
    keys = jr.split(jr.key(settings.seed), (len(starts), settings.n_paths))
    over_paths = jax.vmap(path, in_axes=(None, 0))
    paths = jax.jit(jax.vmap(over_paths))(starts, keys)
    return np.asarray(times), np.asarray(paths)
