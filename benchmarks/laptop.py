"""What bound does a training on a laptop reach, and from how much processor time?

    python scripts/train.py --data mnist --preset laptop --run-dir runs/mnist-laptop
    python benchmarks/laptop.py --run runs/mnist-laptop --output FILE

Evaluates a run on the whole test split: the itemised bound with the objective of its
training, the bound of the same network with the discrete decoder, which is of another
kind and must not be compared with densities, and the exact likelihood of the first
images by the collapsed route. The discrete bound ends at the highest of several
log-SNRs, chosen on the validation split: data at the centres of levels leave a network
that was trained on dequantised ones nothing to find beyond the width of a level.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import _common as common
import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from _short_run import LAPTOP, given_or_short

import eqmdm
from eqmdm._model import ends
from eqmdm.cli import build
from eqmdm.cli.trained import TrainedRun, load_trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(common.Settings):
    """Evaluates a run with the preset laptop."""

    run: Path | None = None
    """The run; with --quick, by default a short one."""
    data_dir: str | None = None
    """A directory with its image files."""
    draws: int = 4
    """Draws of time and noise for each test image."""
    examples: int | None = None
    """Test images of the bounds; by default all."""
    exact_examples: int = 1000
    """Test images of the exact likelihood."""
    probes: int = 1
    """Probes of the divergence of the exact likelihood."""
    tolerance: float = 1e-5
    """The tolerance of its ODE solver."""
    top_log_snrs: tuple[float, ...] = (8.5, 9.5, 10.5, 11.5)
    """The log-SNRs at which the discrete decoder may take over."""
    validation_examples: int = 200
    """Validation images on which that log-SNR is chosen."""
    batch_size: int = 64
    """Images evaluated at once."""
    parts: tuple[Literal["bound", "discrete", "exact"], ...] = (
        "bound",
        "discrete",
        "exact",
    )
    """What to evaluate; the rest is kept from the output file."""
    seed: int = 0
    """The seed of every random draw."""
    quick: bool = False
    """Few images."""


def summary(losses: np.ndarray, settings: Settings, draws: int) -> dict[str, Any]:
    """The mean of bits per dimension over images, with its standard error."""
    mean, error = eqmdm.Estimate.from_mean(losses)
    counts = {"examples": len(losses), "draws": draws, "seed": settings.seed}
    return {"bits_per_dim": mean, "standard_error": error} | counts


def bound(settings: Settings, trained: TrainedRun) -> dict[str, Any]:
    """The bound of the density of dequantised images, term by term."""
    evaluation = eqmdm.evaluate(
        trained.model,
        trained.dataset.test[: settings.examples],
        build.build_objective(trained.options, trained.dataset),
        key=jr.key(settings.seed),
        n_draws=settings.draws,
        batch_size=settings.batch_size,
    )
    terms = {
        name: {"mean": mean, "standard_error": error}
        for name, (mean, error) in evaluation.summary().items()
    }
    return summary(evaluation.loss, settings, settings.draws) | {"terms": terms}


def discrete_bound(settings: Settings, trained: TrainedRun) -> dict[str, Any]:
    """The bound of the log-mass of levels, by the same network."""
    low, _ = ends.log_snr_range(trained.model.diffusion)
    levels = eqmdm.GreyLevels(
        trained.dataset.n_levels, dequantiser=eqmdm.CentreDequantiser()
    )
    objective = eqmdm.Objective(levels=levels)

    def losses(top: float, images: Any) -> np.ndarray:
        interval = eqmdm.LogSNRInterval(low, top)
        return eqmdm.evaluate(
            trained.model.under(eqmdm.VPSDE(interval=interval)),
            images,
            objective,
            key=jr.key(settings.seed),
            n_draws=settings.draws,
            batch_size=settings.batch_size,
        ).loss

    images = trained.dataset.validation[: settings.validation_examples]
    by_top = {top: float(losses(top, images).mean()) for top in settings.top_log_snrs}
    best = min(by_top, key=by_top.__getitem__)
    found = losses(best, trained.dataset.test[: settings.examples])
    chosen = {"top_log_snr": best, "bits_per_dim_on_validation": by_top}
    return summary(found, settings, settings.draws) | chosen


def exact(settings: Settings, trained: TrainedRun) -> dict[str, Any]:
    """The exact likelihood of dequantised images, by the collapsed route."""
    levels = build.build_grey_levels(trained.options, trained.dataset)
    tolerance = settings.tolerance
    controller = dfx.PIDController(rtol=tolerance, atol=tolerance)
    divergence = eqmdm.HutchinsonDivergence(settings.probes)

    @eqx.filter_jit
    def log_likelihoods(model: Any, images: Any, keys: Any) -> Any:
        def one(image: Any, key: Any) -> Any:
            key_level, key = jr.split(key)
            x, correction = levels.encode(image, key=key_level, check=False)
            found = eqmdm.log_likelihood(
                model,
                x.astype(trained.dtype),
                key=key,
                divergence=divergence,
                stepsize_controller=controller,
            )
            return found.log_likelihood + correction, found.n_evaluations

        return jax.vmap(one)(images, keys)

    images = jnp.asarray(trained.dataset.test[: settings.exact_examples])
    keys = jax.vmap(lambda i: jr.fold_in(jr.key(settings.seed), i))(
        jnp.arange(len(images))
    )
    parts = []
    for first in range(0, len(images), settings.batch_size):
        batch = slice(first, first + settings.batch_size)
        parts.append(log_likelihoods(trained.model, images[batch], keys[batch]))
        print(f"exact likelihood: {min(batch.stop, len(images))} images", flush=True)
    found, n_evaluations = (np.concatenate(part) for part in zip(*parts, strict=True))
    n_dims = int(np.prod(trained.dataset.shape))
    losses = eqmdm.bits_per_dim(found, n_dims=n_dims)
    counts = {"evaluations": float(n_evaluations.mean())}
    return summary(np.asarray(losses), settings, settings.probes) | counts


def main(settings: Settings) -> None:
    if settings.quick:
        few = {"examples": 16, "exact_examples": 2, "validation_examples": 16}
        settings = dataclasses.replace(settings, **few, draws=1)
    facts = common.facts(settings.seed)
    common.show(facts)
    with given_or_short(settings.run, LAPTOP, quick=settings.quick) as directory:
        trained = load_trained(directory, data_dir=settings.data_dir)
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        run = json.loads((directory / "options.json").read_text())
    seconds = [json.loads(line).get("processor_seconds", 0.0) for line in lines]
    arrays = eqx.filter(trained.model, eqx.is_inexact_array)
    training = {
        "processor_seconds": max(seconds),
        "command": " ".join(["python", *_without_places(run["command"])]),
        "training_seed": run["seed"],
        "steps": trained.step,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(arrays)),
        "training_versions": run["versions"],
    }
    results: dict[str, Any] = {}
    for name, part in (
        ("bound", bound),
        ("discrete", discrete_bound),
        ("exact", exact),
    ):
        if name not in settings.parts:
            continue
        found = part(settings, trained)
        shown = {k: v for k, v in found.items() if k != "terms"}
        print(name, json.dumps(shown), flush=True)
        # The bound comes first in the file, not in a table of its own.
        results |= found if name == "bound" else {name: found}
        kept = _other_parts(settings, training)
        common.write(settings, facts, **kept | results | training)


def _other_parts(settings: Settings, training: dict[str, Any]) -> dict[str, Any]:
    """What the output file has of the same training, for the parts that are not
    evaluated. It is read again before every writing, since another process may evaluate
    other parts at the same time."""
    output = settings.output
    if output is None or not output.exists():
        return {}
    known = json.loads(output.read_text())
    if any(known.get(name) != value for name, value in training.items()):
        return {}
    return {name: value for name, value in known.items() if name != "settings"}


def _without_places(command: list[str]) -> list[str]:
    """A recorded command, with the names of files for directories of the machine."""
    _, script, *arguments = command
    kept, skip = ["scripts/" + Path(script).name], False
    for argument in arguments:
        if not skip and argument not in ("--data-dir", "--run-dir"):
            kept.append(argument)
        skip = argument in ("--data-dir", "--run-dir")
    return kept


if __name__ == "__main__":
    main(tyro.cli(Settings))
