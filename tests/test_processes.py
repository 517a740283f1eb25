"""Every process with every form, sampler and route: it meets the closed form, or it is
refused by name.

`pytest -m '' -n 0 tests/test_processes.py --process-table FILE` also writes what it
finds, as a table: benchmarks/results/processes.md. It keeps what the file has of the
cells that are not run.
"""

import inspect
import platform
import re
from pathlib import Path

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import processes
import pytest

import eqmdm


TABLE = Path(__file__).parents[1] / "benchmarks" / "results" / "processes.md"
N_EXAMPLES, N_DRAWS, N_SOLVES, N_SAMPLES = 500, 64, 32, 3000

FORMS = {
    "low variance": eqmdm.LowVariance(),
    "hybrid": eqmdm.HybridScoreMatching(),
    "denoising": eqmdm.DenoisingScoreMatching(),
    "implicit": eqmdm.ImplicitScoreMatching(),
    "local": eqmdm.LocalScoreMatching(),
}
# With the number of steps, more for those that add noise in every step.
SAMPLERS = {
    "DPMSolver": (eqmdm.DPMSolver(), 100),
    "EDMHeun": (eqmdm.EDMHeun(), 100),
    "AncestralSampler": (eqmdm.AncestralSampler(), 400),
    "SSCS": (eqmdm.SSCS(), 400),
    "LangevinCorrector": (eqmdm.LangevinCorrector(eqmdm.AncestralSampler()), 400),
    "reverse SDE": (eqmdm.DiffraxSampler(dfx.ShARK()), 400),
    "probability flow": (eqmdm.DiffraxSampler(dfx.Heun(), eqmdm.probability_flow), 100),
}
ROUTES = {
    "collapsed": eqmdm.CollapsedRoute(),
    "augmented": eqmdm.AugmentedRoute(),
    "precision": eqmdm.PrecisionRoute(),
}
COLUMNS = {"form": FORMS, "sampler": SAMPLERS, "route": ROUTES}
# The cells that are tested in every run: a sampler, and refusals of every kind.
QUICK = {
    ("CLD", "local"),
    ("CLD", "DPMSolver"),
    ("TargetDiffusion, double well", "hybrid"),
    ("TargetDiffusion, double well", "SSCS"),
    ("TargetDiffusion, double well", "collapsed"),
}


@eqx.filter_jit
def _bounds(model, x, keys, form):
    one = lambda x, key: eqmdm.elbo(model, x, key=key, form=form, n_draws=N_DRAWS)
    return jax.vmap(one)(x, keys).total


@eqx.filter_jit
def _likelihoods(model, x, keys, route):
    one = lambda x, key: eqmdm.log_likelihood(model, x, key=key, route=route)
    return jax.vmap(one)(x, keys).log_likelihood


def _gap_of_log_densities(case, x, values, allowed):
    """The mean difference from the log-density and from what the ends leave."""
    gaps = np.asarray(values - processes.log_density(case, x)) + case.end_divergence
    return gaps.mean(), gaps.std() / np.sqrt(len(gaps)), allowed


def measure_form(case, form, key):
    key_x, key = jr.split(key)
    x = processes.data(case, N_EXAMPLES, key_x)
    values = _bounds(case.model, x, jr.split(key, N_EXAMPLES), form)
    # What the decoder of the whole start costs for up to four variables, or what the
    # last step of the local form leaves.
    return _gap_of_log_densities(case, x, values, 0.02)


def measure_route(case, route, key):
    key_x, key = jr.split(key)
    x = processes.data(case, N_SOLVES, key_x)
    values = _likelihoods(case.model, x, jr.split(key, N_SOLVES), route)
    allowed = 1e-3
    if isinstance(route, eqmdm.CollapsedRoute):
        # It loses the divergence of the sufficient statistic, not of the whole state.
        case, allowed = case._replace(end_divergence=0.0), allowed + case.end_divergence
    return _gap_of_log_densities(case, x, values, allowed)


def measure_sampler(case, sampler_and_steps, key):
    sampler, n_steps = sampler_and_steps
    x = eqmdm.sample(
        case.model,
        processes.SHAPE,
        key=key,
        n_samples=N_SAMPLES,
        sampler=sampler,
        n_steps=n_steps,
        dtype=jnp.float64,
    )
    ratio = float(jnp.mean(x**2)) / case.variance
    # The variance of a squared normal variable is 2. What the steps leave is below 2 %.
    return ratio - 1, np.sqrt(2 / x.size), 0.02


MEASURE = {"form": measure_form, "sampler": measure_sampler, "route": measure_route}


@pytest.fixture(scope="module")
def found(request):
    """What is found, written as a table if the option is given: an error and its
    standard error, or a refusal."""
    results = {}
    yield results
    path = request.config.getoption("--process-table")
    if path is not None:
        before = _read(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(_table(before | results), encoding="utf-8")


def _every_cell():
    for name in processes.MAKERS:
        for kind, methods in COLUMNS.items():
            for method in methods:
                marks = [] if (name, method) in QUICK else pytest.mark.slow
                yield pytest.param(name, kind, method, marks=marks)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name, kind, method", list(_every_cell()))
def test_process_meets_the_closed_form_or_is_refused_by_name(
    name, kind, method, found, key
):
    case = processes.make_case(name)
    try:
        result = MEASURE[kind](case, COLUMNS[kind][method], key)
    except (TypeError, ValueError) as error:
        # One of ours, which names the argument.
        found[name, method] = message = str(error)
        assert re.match(r"`[a-z_]+`", message)
        assert not _works(name, method)
        return
    error, standard_error, allowed = result
    found[name, method] = f"{error:.4f} ± {standard_error:.4f}"
    assert abs(error) < 5 * standard_error + allowed
    assert _works(name, method)


def _works(name, method):
    """Whether the committed table has a number there."""
    return "±" in _read(TABLE.read_text(encoding="utf-8"))[name, method]


def _read(text):
    """The cells of a table, with the text of their refusals."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.M))
    header, _, *rows = rows
    found = {}
    for name, *cells in rows:
        for method, cell in zip(header[1:], cells, strict=True):
            refused = re.fullmatch(r"refused \((\d+)\)", cell)
            found[name, method] = notes[refused[1]] if refused else cell
    return found


def test_table_has_every_public_process_form_sampler_and_route():
    table, rows = _read(TABLE.read_text()), " ".join(processes.MAKERS)
    methods = [method for methods in COLUMNS.values() for method in methods]
    assert list(table) == [(row, m) for row in processes.MAKERS for m in methods]
    assert "not run" not in table.values()
    samplers = (sampler for sampler, _ in SAMPLERS.values())
    used = set(map(type, [*FORMS.values(), *samplers, *ROUTES.values()]))
    for name in dir(eqmdm):
        value = getattr(eqmdm, name)
        if not inspect.isclass(value) or inspect.isabstract(value):
            continue
        if issubclass(value, eqmdm.AbstractProcess):
            assert name in rows
        kinds = eqmdm.AbstractForm, eqmdm.AbstractSampler, eqmdm.AbstractRoute
        if issubclass(value, kinds) and not name.startswith("Abstract"):
            assert value in used, name


def _table(found):
    """The table of all cells, with the refusals as numbered notes."""
    notes = []

    def shown(name, method):
        result = found.get((name, method), "not run")
        if "±" in result or result == "not run":
            return result
        note = _general(result)
        if note not in notes:
            notes.append(note)
        return f"refused ({notes.index(note) + 1})"

    methods = [method for methods in COLUMNS.values() for method in methods]
    lines = [
        f"| process | {' | '.join(methods)} |",
        "| --- " * (len(methods) + 1) + "|",
    ]
    for name in processes.MAKERS:
        cells = [shown(name, method) for method in methods]
        lines.append(f"| {' | '.join([name, *cells])} |")
    head = f"""# Every process with every form, sampler and route

Made by `pytest -m '' -n 0 tests/test_processes.py --process-table
benchmarks/results/processes.md` with Diffrax {dfx.__version__}, JAX {jax.__version__},
in float64 on a CPU ({platform.machine()}). The data are normal in two dimensions, and
every model is exact: by closed forms for linear processes, by the Fokker-Planck
equation on a grid for the others. `AbstractNonlinearDiffusion` is a user's own drift,
$-y^3$.

- Forms: the mean over {N_EXAMPLES} examples, with {N_DRAWS} draws each, of the bound
  less the log-density, plus the divergence of the law at t1 from the prior, with its
  standard error, in nats. Forms with the decoder of the whole start lose a little more
  with auxiliary variables.
- Samplers: the variance of {N_SAMPLES:,} samples relative to that of the data, less 1,
  with its standard error, after 100 steps, or 400 with noise in every step.
- Routes: as for the forms, over {N_SOLVES} examples; for the collapsed one without the
  divergence, which is that of the whole state.

"""
    numbered = [f"{i}. {note}" for i, note in enumerate(notes, start=1)]
    return head + "\n".join([*lines, "", "Refusals:", "", *numbered]) + "\n"


def _general(message):
    """The first sentence of a refusal, up to what it got."""
    return message.split(". ")[0].split("; got")[0].rstrip(".") + "."
