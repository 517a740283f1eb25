"""How long should the last step of local score matching be? Its bias and variance.

    python benchmarks/local_score_matching.py --output results/local_score_matching.json

For data from a normal mixture in one dimension and a process towards a target, with
the score of the law of its states from the Fokker-Planck equation, the bound of a form
differs from the log-density by less than 1e-3 nats on average. Prints, for last steps
of several lengths, the bias of the local form by quadrature on the grid, the mean
difference and its standard error, and the standard deviation of one draw; for the
implicit form, which has no such step, the last three.
"""

import dataclasses
import json
import sys
from pathlib import Path

import _common as common
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro

import eqmdm
from eqmdm._diffusion.local import local_step, noise_rate


# The solver of the equation is that of the tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fokker_planck import FokkerPlanck, mixture_density  # noqa: E402


WEIGHTS, MEANS, STDS = (0.4, 0.6), (-0.9, 0.8), (0.35, 0.45)
LENGTHS = (0.32, 0.16, 0.08, 0.04, 0.02, 0.01, 0.005)
# Each target with the range in which it and the data have their mass.
TARGETS = {
    "logistic": (eqmdm.LogisticTarget(), 14.0),
    "double well": (eqmdm.DoubleWellTarget(1.0, 1.0), 2.9),
}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Measures the bias and the variance of local score matching."""

    examples: int = 40_000
    """Draws of the data, each with one draw of time and noise."""
    lengths: tuple[float, ...] = LENGTHS
    """Lengths of the last step."""
    table: Path | None = None
    """A Markdown file for the table."""
    from_results: Path | None = None
    """Only write the table, from the output of an earlier run."""
    quick: bool = False
    """Few draws and one length."""


def clock(t):
    return 0.1 * t + 0.5 * 5.9 * t**2


def measure(settings: Settings, name: str, key: jax.Array):
    target, reach = TARGETS[name]
    process = eqmdm.TargetDiffusion(
        [[0.0]],
        [[1.0]],
        target,
        schedule=eqmdm.LinearSchedule(0.1, 6.0),
        interval=eqmdm.TimeInterval(2e-3, 1.0),
        simulation=eqmdm.Simulation(128),
    )
    density = mixture_density(WEIGHTS, MEANS, STDS)
    equation = FokkerPlanck(target, density, dissipation=1.0, reach=reach, n_cells=1200)
    model = eqmdm.FunctionModel(equation.score(clock, 1.8e-3, 1.0), process)
    key_part, key_noise, key = jr.split(key, 3)
    part = np.asarray(jr.bernoulli(key_part, WEIGHTS[1], (settings.examples,)), int)
    noise = np.asarray(jr.normal(key_noise, (settings.examples,)))
    x = np.asarray(MEANS)[part] + np.asarray(STDS)[part] * noise
    # The same times for all forms.
    keys = jr.split(key, settings.examples)
    u = eqmdm.low_discrepancy(settings.examples, key=key)

    # The length is a constant of the program, as it is in training.
    @eqx.filter_jit
    def gaps(form):
        one = lambda x, u, key: eqmdm.elbo(model, x, key=key, form=form, u=u).total
        return jax.vmap(one)(jnp.asarray(x)[:, None], u, keys)

    forms = [eqmdm.LocalScoreMatching(length) for length in settings.lengths]
    for form in (*forms, eqmdm.ImplicitScoreMatching()):
        values = np.asarray(gaps(form)) - np.log(density(x))
        length = form.last_step
        row = {
            "target": name,
            "length": length or None,
            "bias": bias(process, equation, length) if length else 0.0,
            "difference": float(values.mean()),
            "standard_error": float(values.std() / np.sqrt(len(values))),
            "standard_deviation": float(values.std()),
        }
        parts = [
            f"{name:12} {row['length'] or 'implicit':>9} {row['bias']:11.2e}",
            f"{row['difference']:8.4f} ± {row['standard_error']:.4f}",
            f"{row['standard_deviation']:8.2f}",
        ]
        print(*parts, flush=True)
        yield row


def bias(process, equation: FokkerPlanck, length: float, n_times: int = 48) -> float:
    """The integral over time of the expected integrand under the law after a linearised
    last step, less that under the law of the equation."""
    y, width = equation.grid, equation.width
    t0, t1 = float(process.t0), float(process.t1)
    nodes, weights = np.polynomial.legendre.leggauss(n_times)
    log_times = np.log(t0) + 0.5 * (nodes + 1) * np.log(t1 / t0)
    log_target = 2 * np.log(equation.root)
    slope = np.gradient(log_target, width)
    total = 0.0
    for t, weight in zip(np.exp(log_times), weights, strict=True):
        now, law = jnp.asarray(t), equation.density(clock(t))
        before = t - length / float(noise_rate(process, now))
        before = before if before >= t0 else 0.0
        step = _step(process, jnp.asarray(before), now, jnp.asarray(y)[None])
        mean = y + np.asarray(step.shift[0])
        std = np.asarray(step.transition.root[0, 0])
        z = (y[:, None] - mean) / std
        kernel = np.exp(-0.5 * z**2) / (std * np.sqrt(2 * np.pi))
        found = kernel @ equation.density(clock(before)) * width
        # Where the law of the equation is only rounding, so is its score.
        trusted = law > 1e-10 * law.max()
        r = np.gradient(np.log(np.where(trusted, law, 1)), width) - slope
        noise = float(process.diffusion_matrix(now)[0, 0]) ** 2
        value = -noise * (0.5 * r**2 + slope * r + np.gradient(r, width))
        inside = trusted & np.roll(trusted, 2) & np.roll(trusted, -2)
        change = np.where(inside, (found - law) * value, 0).sum() * width
        total += change * t * 0.5 * weight * np.log(t1 / t0)
    return total


@eqx.filter_jit
def _step(process, before, now, about):
    return local_step(process, before, now, about)


def render(results: dict) -> str:
    """The table of a run, in Markdown."""
    settings, versions = results["settings"], results["versions"]
    lines = [
        "# The last step of local score matching",
        "",
        "Made by `python benchmarks/local_score_matching.py --output FILE --table "
        f"FILE` with JAX {versions['jax']} and Diffrax {versions['diffrax']}, on a "
        f"{results['device']['kind']}, seed {results['seed']}.",
        "",
        "Nats, in one dimension. Bias: that of the form, by quadrature over time and "
        "over the law on a grid. Difference: the bound less the log-density, over "
        f"{settings['examples']:,} examples with one draw each, on common times. "
        "Spread: the standard deviation of one draw.",
        "",
        "| target | length | bias | difference | spread |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in results["rows"]:
        bias = f"{row['bias']:.1e}" if row["length"] else "none"
        difference = f"{row['difference']:.3f} ± {row['standard_error']:.3f}"
        spread = f"{row['standard_deviation']:.2f}"
        cells = row["target"], str(row["length"] or "implicit form")
        lines.append(f"| {' | '.join([*cells, bias, difference, spread])} |")
    return "\n".join(lines) + "\n"


def main(settings: Settings) -> None:
    if settings.from_results is not None:
        results = json.loads(settings.from_results.read_text())
    else:
        results = run(settings)
    if settings.table is not None:
        settings.table.write_text(render(results), encoding="utf-8")


def run(settings: Settings) -> dict:
    facts = common.facts()
    common.show(facts)
    if settings.quick:
        settings = dataclasses.replace(settings, examples=2000, lengths=(0.02,))
    rows = []
    keys = jr.split(jr.key(0), len(TARGETS))
    for name, key in zip(TARGETS, keys, strict=True):
        for row in measure(settings, name, key):
            rows.append(row)
            common.write(settings, facts, rows=rows)
    return common.record(settings, facts, rows=rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
